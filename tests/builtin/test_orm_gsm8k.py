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
        (r"\boxed{\frac{3}{4}}", None),
        (r"\boxed{3/4}", None),
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
    ],
)
def test_numbers_are_compared_exactly(scorer, answer, reference, reward):
    assert scorer("orm", "gsm8k").reward(answer, reference) == reward


def test_a_reference_without_a_number_judges_nothing(scorer):
    assert scorer("orm", "gsm8k").reward("A: 18", "Monday") == Unscored("the reference has no number: 'Monday'")
