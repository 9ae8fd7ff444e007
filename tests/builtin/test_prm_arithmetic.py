"""The reader of calculations: on GSM8K's own solutions, on random expressions, and on what a person has judged."""

import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data/gsm8k"

CALCULATION = re.compile(r"<<[^<>]*\d[-+*/][^<>]*=[^<>]*>>")  # some annotations hold none: <<12=12>>

# Lines of GSM8K's 2,200 solutions here that calculate wrongly, as a person sees: 7 of them, in 7 solutions.
WRONG_IN_GSM8K = {
    "So it cost 192*100=$1920",
    "She orders 6 croissants at $3.00 each so they cost 6*2.5 = $<<6*3=18.00>>18.00",
    "Thus, she should run for 6/3=.5 hour which is 30 minutes.",
    "The second scroll is 4080 + 4080 / 2 = 4000 + 2040 = <<4080+4080/2=6120>>6120 years old.",
    "If the magnet cost 3-times more than the sticker, the sticker cost 3/1=1 dollar.",
    "He has to leave 0130 hours earlier than 0900 i.e. 0900-0130 = 0730 hours",
    "Margaret has 100 * 0.75 = $0.75.",
}


@pytest.fixture(scope="module")
def arithmetic(scorer):
    return scorer("prm", "arithmetic")


@pytest.fixture(scope="module")
def solutions():
    lines = [line for name in ("train", "test") for line in (DATA / f"{name}.jsonl").read_text().splitlines()]
    return [json.loads(line)["messages"][-1]["content"] for line in lines]


def test_the_solutions_of_gsm8k_calculate_rightly_but_for_seven(arithmetic, solutions):
    rewards = arithmetic.rewards(solutions)
    annotated = [steps for steps, solution in zip(rewards, solutions, strict=True) if CALCULATION.search(solution)]
    right = [steps for steps in annotated if isinstance(steps, list) and all(steps)]
    assert len(annotated) > 2000
    assert len(right) >= 0.99 * len(annotated)
    lines = {line for solution in solutions for line in solution.splitlines()}
    assert {line for line in lines if arithmetic.reward(line) == [0.0]} == WRONG_IN_GSM8K


def test_a_wrong_annotation_is_seen_in_every_solution(arithmetic, solutions):
    rng = random.Random(3)
    seen = corrupted = 0
    for solution in solutions:
        steps = arithmetic.reward(solution)
        lines = [line for line in solution.splitlines() if "<<" in line and arithmetic.reward(line) == [1.0]]
        if not lines or not all(steps):
            continue
        line = rng.choice(lines)
        left, equals, right = line.rpartition("=")
        number, annotation_end, rest = right.partition(">>")
        wrong = f"{left}{equals}{float(number.rstrip('%').replace(',', '')) + 3:g}{annotation_end}{rest}"
        corrupted += 1
        seen += 0.0 in arithmetic.reward(solution.replace(line, wrong, 1))
    assert corrupted > 2000
    assert seen >= 0.99 * corrupted


def expression(rng, depth):
    """A random expression, and Python's form of it."""
    if depth == 0:
        number = rng.choice([str(rng.randint(0, 50)), f"{rng.randint(0, 9)}.{rng.randint(0, 99):02}", ".5", "1,200"])
        return number, f"Fraction('{number.replace(',', '')}')"
    operator, python = rng.choice([*zip("+-*/×÷−", "+-*/*/-", strict=True), ("·", "*"), (" x ", "*")])
    (left, python_left), (right, python_right) = expression(rng, rng.randrange(depth)), expression(rng, depth - 1)
    space = rng.choice(["", " "])
    both = rng.random() < 0.5
    text = f"(({left}){space}{operator}{space}({right}))" if both else f"({left}{space}{operator}{space}{right})"
    return text, f"(({python_left}) {python} ({python_right}))"


def test_random_expressions_against_python(arithmetic):
    rng = random.Random(11)
    judged = 0
    while judged < 1000:
        text, python = expression(rng, rng.randint(1, 4))
        try:
            value = eval(python)  # made above
        except ZeroDivisionError:
            assert arithmetic.reward(f"{text} = 7") == [0.0], text
            continue
        shown = f"{value.numerator}/{value.denominator}" if value.denominator > 1 else str(value.numerator)
        wrong = f"{value.numerator + value.denominator}/{value.denominator}"
        assert arithmetic.reward(f"{text} = {shown}") == [1.0], (text, shown)
        assert arithmetic.reward(f"So {text} = {wrong}, I think.") == [0.0], (text, wrong)
        judged += 1


def test_results_may_be_rounded_or_cut_off_to_the_digits_written(arithmetic):
    rng = random.Random(5)
    for _ in range(300):
        left, right, places = rng.randint(1, 999), rng.randint(1, 99), rng.randint(1, 4)
        exact = Fraction(left, right)
        unit = Fraction(1, 10**places)
        down = exact // unit * unit
        near = {down} if exact - down <= unit / 2 else {down, down + unit}
        for written in (down - unit, down, down + unit, down + 2 * unit):
            holds = written == exact or written in near
            line = f"{left}/{right} = {float(written):.{places}f}"
            if exact - down != unit / 2:  # a tie may go both ways
                assert arithmetic.reward(line) == [float(holds)], line


YES, NO, UNREAD = [1.0], [0.0], 0.0


@pytest.mark.parametrize(
    ("answer", "rewards"),
    [
        # what is read
        ("5 + 3 = 8", YES),
        ("5 + 3 = 9", NO),
        ("16 - 3 - 4 = <<16-3-4=9>>9 eggs, and $<<9*2=18>>18", YES),
        ("16 - 3 - 4 = <<16-3-4=8>>9 eggs", NO),
        ("16 - 3 - 4 = <<16-3-4=9>>8 eggs", NO),
        ("Total = 5 + 3 = 8", YES),
        ("x = 5 + 3 = 9", NO),
        ("2 + 2 = 4 = 2 * 2", YES),
        ("48 / 2 = 24 = 25", NO),
        ("3 + 4 = 7 + 1 = 8", NO),
        ("2 + 3 * 4 = 14", YES),
        ("2 + 3 * 4 = 20", NO),
        ("(2 + 3) * 4 = 20", YES),
        ("[(1 + 2) * 3] - {4 / 2} = 7", YES),
        ("2(3 + 4) = 14", YES),
        ("-5 + 8 = 3", YES),
        ("5 - 7 = −2", YES),
        ("2 * -3 = -6", YES),
        ("-$5 + $8 = $3", UNREAD),
        ("= 5 + 3 = 9", NO),
        ("10 - 4 - 3 = 3", YES),
        ("2^3^1 = 8", UNREAD),
        ("5² = 25, 2 ** 3", YES),
        ("2**10 = 1024", YES),
        ("$5 + $3 = $8", YES),
        ("1,000 + 500 = 1,500", YES),
        ("1000 + 500 = 1,600", NO),
        (".5 + .25 = 0.75", YES),
        ("0.1 + 0.2 = 0.3", YES),
        ("20% * 50 = 10", YES),
        ("100% - 20% = 80%", YES),
        ("50 + 30 = 80%", YES),
        ("1/4 = 0.25 = 25%", YES),
        ("9 / 27 * 100% = 33.33%", YES),
        ("1/3 = 33%", YES),
        ("1/3 = 35%", NO),
        ("10 / 3 = 3.33", YES),
        ("2 / 3 = 0.66", YES),
        ("10 / 3 = 3.34", NO),
        ("7 / 2 = 4", NO),
        ("7 / 2 = 3", NO),
        ("7 / 2 ≈ 4", YES),
        ("22 / 7 ≈ 5", NO),
        ("5 / 0 = 0", NO),
        ("12 x 4 = 48 and 12x4=48", YES),
        ("12 × 4 ÷ 3 = 16", YES),
        ("３ × ４ ＝ １２", YES),
        ("1\u202f234 + 1 = 1’235", YES),
        ("1.5e3 + 1 = 1501 = 1.5 × 10³ + 1", YES),
        ("2½ * 2 = 5", YES),
        (r"2\frac{1}{2} * 2 = 2", NO),
        ("(3 + 1)² = 16", YES),
        ("他有 3+4=7 个苹果。", YES),
        ("他有3+4=8个苹果。", NO),
        (r"\[ \frac{1}{2} + \frac{1}{4} = \frac{3}{4} \]", YES),
        (r"$3 \times 4 = 13$", NO),
        (r"\$5 + \$3 = \boxed{\$8}", YES),
        (r"20\% \times 50 = 10", YES),
        (r"1{,}000 + 1 = 1001", YES),
        ("- 5 + 3 = 8", YES),
        ("1. 5 + 3 = 8", YES),
        ("2) 5 + 3 = 9", NO),
        ("**5** + **3** = **8**", YES),
        ("**5 + 3 = 9**", NO),
        ("He has 7 (3 + 4 = 7) of them", YES),
        ("5 + 3 = 8 -> 8 * 2 = 16", YES),
        ("5 + 3 = 8 => 8 * 2 = 17", NO),
        ("5 + 3 = 8. 9 + 1 = 11", NO),
        ("5 * 3 = $15/week", YES),
        ("10 * 6 = 60 miles / hour", YES),
        ("2 * 4 = 8kg", YES),
        ("in 4 weeks a total of 3 * 4 = 13", NO),
        ("🍎 5 + 3 = 8 🍎", YES),
        # what is not: words may change the meaning, or nothing is calculated
        ("", UNREAD),
        ("So it is 8.", UNREAD),
        ("x = 8, y = 9", UNREAD),
        ("8 = 8", UNREAD),
        ("2x + 3 = 7", UNREAD),
        ("26 = 5 + 3x", UNREAD),
        ("f(2) + 3 = 9", UNREAD),
        ("10 - 4 = 6 + y", UNREAD),
        ("20% of 50 + 1 = 11", UNREAD),
        ("1/2 of 10 + 3 = 8", UNREAD),
        ("two thirds of 9 + 3 = 9", UNREAD),
        ("half of 10 + 3 = 8", UNREAD),
        ("3 times 4 + 2 = 14", UNREAD),
        ("3乘以4+2=14", UNREAD),
        ("60 students x 2/3 = 40", UNREAD),
        ("3 apples - 2 = 1", UNREAD),
        ("5 - 2 = 3 apples + 4 pears", UNREAD),
        ("24 / 12 = 2 dozen", UNREAD),
        ("$1 / 2 = 50 cents", UNREAD),
        ("10 / 3 = 3 remainder 1", UNREAD),
        ("4 / 3 = 1 and 1/3", UNREAD),
        ("10:30 + 2 = 12:30", UNREAD),
        ("9**9**9 = 1", UNREAD),
        ("9^999 = 1", UNREAD),
        ("5! + 1 = 121", UNREAD),
        ("5 + 3 =", UNREAD),
        ("5 + = 8", UNREAD),
        ("5 + 3) * (2 = 16", UNREAD),
        ("100 + (100 * (10/100) = 110", UNREAD),
        ("4 * 5 = 2 * 5) + 10", UNREAD),
    ],
)
def test_equations(arithmetic, answer, rewards):
    assert arithmetic.reward(answer) == rewards


@pytest.mark.parametrize(
    ("answer", "rewards"),
    [
        ("1 + 1 = 2\n2 + 2 = 5\n3 + 3 = 6", [1.0, 0.0, 1.0]),
        ("1 + 1 = 2 and 2 + 2 = 5\n3 + 3 = 6", [0.0, 1.0]),
        ("1 + 1 = 2\nThat is all.\n\n3 + 3 = 6\n#### 6", [1.0, 1.0]),
        ("Step 1: 1 + 1 = 2\nStep 2: 2 + 2 = 5\n\\boxed{5}", [1.0, 0.0]),
        ("Step 1: add\n1 + 1 = 2\n2 + 2 = 5\n\nStep 2: 3 + 3 = 6", [0.0, 1.0]),
        ("We add.\nStep 1 - 5 + 3 = 8\nStep 2. 8 + 1 = 9", [1.0, 1.0]),
        ("**Step 1:** 1 + 1 = 2\n### Step 2\n2 + 2 = 4", [1.0, 1.0]),
        ("Step 1: let x be the eggs\nStep 2: 1 + 1 = 2", [1.0]),
        ("Step 1: let x be the eggs", 0.0),
    ],
)
def test_steps(arithmetic, answer, rewards):
    assert arithmetic.reward(answer) == rewards


def test_the_quickstarts_own_answers_hold(arithmetic):
    from swiftplug.plugin.registry import PluginChoice, Registry

    options = {"size": 200, "max_steps": 4, "max_number": 50}
    problems = Registry.discover().resolve("dataset", PluginChoice(name="arithmetic", options=options), "").bound()
    answers = [row["messages"][-1]["content"] for row in problems]
    assert arithmetic.rewards(answers) == [[1.0] * answer.count("Step") for answer in answers]
    wrong = [answer.replace("Step 1: ", "Step 1: 1 + ", 1) for answer in answers]
    assert [rewards[0] for rewards in arithmetic.rewards(wrong)] == [0.0] * 200


def test_a_sum_that_is_too_long_is_not_read(arithmetic):
    """Truncated to the limit, it would be another sum. 0.0 is the reward of an answer without a step."""
    rng = random.Random(5)
    for _ in range(200):
        terms = [rng.randint(1, 10 ** rng.randint(1, 4)) for _ in range(rng.randint(60, 110))]
        long, total = " + ".join(map(str, terms)), sum(terms)
        if len(long) < 301:
            continue
        for equation in (f"{long} = {total}", f"{total} = {long}"):
            assert arithmetic.rewards([f"Step 1: 1 + 1 = 2\nStep 2: {equation}"]) == [[1.0]], equation
