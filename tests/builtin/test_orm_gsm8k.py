"""The number reader, on GSM8K's own solutions and on the ways that models write a number."""

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest

from swiftplug.plugin.rewards import Unscored

DATA = Path(__file__).parents[1] / "data/gsm8k"
PAPER = re.compile(r"#### (\-?[0-9\.\,]+)")  # what the paper's released code looks for


@pytest.fixture(scope="module")
def solutions():
    lines = [line for name in ("train", "test") for line in (DATA / f"{name}.jsonl").read_text().splitlines()]
    return [json.loads(line)["messages"][-1]["content"] for line in lines]


def test_it_reads_gsm8k_as_the_paper_does(scorer, solutions):
    gsm8k = scorer("orm", "gsm8k")
    numbers = [PAPER.search(solution)[1].replace(",", "") for solution in solutions]
    assert [Decimal(gsm8k.plugin.answer_of(solution)) for solution in solutions] == list(map(Decimal, numbers))
    assert set(gsm8k.rewards(solutions, solutions)) == {1.0}
    others = [f"So it is {Decimal(number) + 1}." for number in numbers]
    assert set(gsm8k.rewards(others, solutions)) == {0.0}
    boxes = [rf"It is not 7, but \boxed{{{number}}}, in 3 steps." for number in numbers]
    assert set(gsm8k.rewards(boxes, solutions)) == {1.0}
    samples = [f"Some reasoning with 2 numbers.\nA: {number}" for number in numbers]
    assert set(gsm8k.rewards(samples, solutions)) == {1.0}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        # where it stands
        ("#### 18", "18"),
        ("####18", "18"),
        ("9 * 2 = <<9*2=18>>18\n#### 18\n\nIt took 3 steps.", "18"),
        ("#### 17\nNo:\n#### 18", "18"),
        ("#### 16 - 3 - 4 = 9", "9"),
        ("#### x = 18", "18"),
        ("#### Step 2\nThat makes 18", "18"),
        ("#### 2. Add them\nThat makes 18", "18"),
        ("#### none, as 18 - 18 is nothing", "18"),
        ("A: 18", "18"),
        ("She has 2 left.\nA: $18 (9 times 2)", "18"),
        ("**Answer:** 18 for 3 days", "18"),
        ("A: 17\nNo, it is 18", "18"),
        ("A: 9 * 2 = 18 in 3 days", "18"),
        (r"\boxed{18} in 3 days", "18"),
        (r"\boxed{17}, no, \boxed{18}", "18"),
        ("\\boxed{17}\n#### 18", "18"),
        ("#### 4 boxes of 5\n\\boxed{20}", "20"),
        (r"\boxed{x = 18}", "18"),
        (r"\boxed{\text{18 dollars}}", "18"),
        (r"\boxed{18\text{ cm}^2}", "18"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        (r"\boxed{3/4}", "0.75"),
        (r"\boxed{\frac{x}{4}}", None),
        (r"18 days: \boxed{\text{Monday}}", None),
        ("16 - 3 - 4 = 9 eggs, so 9 * 2 = 18.", "18"),
        ("9 * 2 = <<9*2=18>>", "18"),
        ("eighteen", None),
        ("", None),
        ("####", None),
        # how it is written
        ("18.", "18"),
        ("18.00", "18"),
        ("$18.50", "18.5"),
        ("018", "18"),
        ("0.0", "0"),
        ("-0", "0"),
        (".5 miles", "0.5"),
        ("No.5", "5"),
        ("...5", "5"),
        ("50%", "50"),
        ("1,000", "1000"),
        ("$1,234,567.80", "1234567.8"),
        ("1, 2", "2"),
        (r"\boxed{1{,}000}", "1000"),
        (r"\boxed{10\!,\!000}", "10000"),
        (r"\boxed{\$1,000}", "1000"),
        ("**$18**", "18"),
        ("€18, or £18, or ¥18", "18"),
        ("共１８个", "18"),
        ("答案：１，０００．５元", "1000.5"),
        ("是－5", "-5"),
        ("it is -5", "-5"),
        ("it is −5", "-5"),
        ("= -$5", "-5"),
        ("$-5", "-5"),
        ("(-5)", "-5"),
        ("48-24", "24"),
        ("48 - 24", "24"),
        ("48 -24", "24"),
        ("$48-$24", "24"),
        ("- 24 eggs", "24"),
        ("COVID-19", "19"),
        ("7" * 5000 + ".10", "7" * 5000 + ".1"),
        # where it stands, in the ways of models
        (r"so $\boxed 18$ in 3 days", "18"),
        (r"so \boxed 18 in 3 days", "18"),
        (r"\boxed {18} in 3 days", "18"),
        (r"\fbox{18} in 3 days", "18"),
        (r"The answer is \boxed{18", None),
        ("#### 18\n\\boxed{1", "18"),
        ("<think>It is 3.</think><answer>18 dollars for 3 days</answer>", "18"),
        ("<answer>$18</answer> (see step 2)", "18"),
        ("<answer>none</answer> of 18", None),
        ("So the final answer is: **18** apples for 3 children.", "18"),
        ("The answer is 18 apples for 3 children.", "18"),
        ("**Final Answer:** $18 for 3", "18"),
        ("The answer is not 17, but 18.", "18"),
        ("#### `18` or 3", "18"),
        (r"#### \(18\) or 3", "18"),
        (r"\boxed{\mathbf{18}}", "18"),
        (r"\boxed{\approx 18}", "18"),
        ("A: US$18 for 3", "18"),
        ("A: ₩18 for 3", "18"),
        ("答案是18元", "18"),
        ("一共需要１，２３４．５０元。", "1234.5"),
        (r"\boxed{+5}", "5"),
        (r"\boxed{约18}", "18"),
        ("答案：18元, 共3人", "18"),
        ("答案是 18 元, 共3人", "18"),
        ("答案是负3", "-3"),
        ("答：3个小朋友一共有25元。", "25"),
        (r"\boxed{2^{10}}", None),
        (r"\boxed{2\sqrt{3}}", None),
        (r"\boxed{2\pi}", None),
        # reasoning is no answer
        ("<think>9 * 2 = 18</think>It is 17.", "17"),
        (r"<think>\boxed{18}</think>", None),
        (r"<think>It is \boxed{18}", None),
        ("Hm, 17?</think>\n\n18", "18"),
        # how its groups are separated
        ("The answer is 1 234 567.", "1234567"),
        ("1\u00a0234\u00a0567", "1234567"),
        ("1\u202f234\u202f567.5", "1234567.5"),
        ("1\u2009234 km", "1234"),
        ("1'234.50", "1234.5"),
        ("1’234", "1234"),
        (r"\boxed{1{,}234}", "1234"),
        (r"\boxed{1\,234\,567}", "1234567"),
        (r"\boxed{1\;234}", "1234"),
        (r"\boxed{1~234}", "1234"),
        (r"\boxed{1 234}", "1234"),
        ("1,00,000 rupees", "100000"),
        ("1.234.567", "1234567"),
        ("1.234.567,89", "1234567.89"),
        ("1.234,5", "1234.5"),
        ("in 2024 100 of them", "100"),
        ("(1, 2, 3)", "3"),
        ("1,2,3", "3"),
        # how it is written
        ("1.5e3", "1500"),
        ("2E+5 m", "200000"),
        ("1.5e-3", "0.0015"),
        ("1.5 × 10^3", "1500"),
        (r"\boxed{1.5 \times 10^{3}}", "1500"),
        ("A: 1.5 × 10³ km in 2 days", "1500"),
        ("3.5 x 10^4 m", "35000"),
        ("10^{-3}", "0.001"),
        (r"2\times10^{2} = 200", "200"),
        ("18 cm²", "18"),
        ("18km", "18"),
        ("18-inch", "18"),
        ("50%", "50"),
        (r"\boxed{50\%}", "50"),
        ("–5", "-5"),
        ("It is 3–5", "5"),
        ("1/2", "0.5"),
        ("So 1/3 of it.", "1/3"),
        ("2/6", "1/3"),
        ("-1/2", "-0.5"),
        (r"\boxed{-\frac{1}{2}}", "-0.5"),
        (r"\boxed{\dfrac{7}{2}}", "3.5"),
        (r"\boxed{\frac12}", "0.5"),
        (r"\boxed{2\frac{1}{2}}", "2.5"),
        ("2 1/2 cups", "2.5"),
        ("2 and 1/2 cups", "2.5"),
        ("2½ cups", "2.5"),
        ("¾", "0.75"),
        ("on 1/2/2024", "2024"),
        ("48/2=24", "24"),
        ("1/0", "0"),
        ("٣٤", "34"),
        ("𝟏𝟖", "18"),
    ],
)
def test_the_final_number(scorer, text, number):
    gsm8k = scorer("orm", "gsm8k")
    assert gsm8k.plugin.answer_of(text) == number
    if number is not None:
        assert gsm8k.reward(text, number) == 1.0
    assert gsm8k.reward(text, "123456") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "reward"),
    [
        ("A: 18", 18, 1.0),
        ("A: 18", 18.0, 1.0),
        ("A: -0.5", -0.5, 1.0),
        ("A: 18", "$18.00", 1.0),
        ("A: 18", "18 dollars", 1.0),
        ("A: 1000", "#### 1,000", 1.0),
        ("A: 18.1", 18, 0.0),
        ("A: -18", 18, 0.0),
        ("A: 0.30000000000000000001", "0.3", 0.0),
        ("A: " + "9" * 5000, "9" * 4999 + "8", 0.0),
        ("no idea", 18, 0.0),
        ("A: 33.33", "100/3", 0.0),
        (r"A: \frac{100}{3}", r"\boxed{33\frac{1}{3}}", 1.0),
        ("A: 1,5", "1,5", 1.0),
        ("A: 1,5", "18", 0.0),
        ("A: 1,5", "5", 0.0),
        ("A: 1,5", "1.5", Unscored("1,5 may be a decimal, or two numbers")),
        ("A: 18.50", "18,5", Unscored("18,5 may be a decimal, or two numbers")),
        ("A: 1,234", "1.234", 0.0),
    ],
)
def test_numbers_are_compared_exactly(scorer, answer, reference, reward):
    assert scorer("orm", "gsm8k").reward(answer, reference) == reward


def test_a_reference_without_a_number_judges_nothing(scorer):
    assert scorer("orm", "gsm8k").reward("A: 18", "Monday") == Unscored("the reference has no number: 'Monday'")
