"""The outcome reward models that need no number and no mathematics, on answers that a person has judged."""

import subprocess
import sys
import time
from collections import Counter
from itertools import product

import numpy as np
import pytest

from swiftplug.errors import UserError
from swiftplug.plugin.rewards import Unscored

QUICK = [
    ("orm", "math", {}),
    ("orm", "gsm8k", {}),
    ("orm", "format", {}),
    ("orm", "react", {}),
    ("orm", "repetition", {}),
    ("orm", "length", {"max_chars": 400}),
    ("orm", "cosine", {"max_chars": 400}),
    ("prm", "arithmetic", {}),
]
COMPARING = [("math", {}), ("gsm8k", {}), ("react", {}), ("cosine", {"max_chars": 400}), ("math_verify", {})]


@pytest.mark.parametrize(
    ("answer", "reference", "reward"),
    [
        (r"\boxed{18}", r"\boxed{18}", 1.0),
        (r"so it is \boxed{ 18 }.", r"16 - 3 - 4 = 9, and \boxed{18}", 1.0),
        (r"\boxed{18}", "18", 1.0),
        (r"\boxed{18}", " 18\n", 1.0),
        (r"\boxed{18}", 18, 1.0),
        (r"\boxed{18}", 18.5, 0.0),
        (r"\boxed{18.0}", "18", 0.0),  # as text; mathematics is for math_verify
        ("18", "18", 0.0),
        ("", "18", 0.0),
        (r"\boxed{}", "", 1.0),
        (r"\boxed{3}, no, \boxed{4}", r"\boxed{4}", 1.0),
        (r"\boxed{4}, no, \boxed{3}", r"\boxed{4}", 0.0),
        (r"\boxed{4}", r"first \boxed{3}, then \boxed{4}", 1.0),
        (r"\boxed{\frac{1}{2}}", r"\boxed{\frac{1}{2}}", 1.0),
        (r"\boxed{\frac{1}{2}} and {braces}", r"\frac{1}{2}", 1.0),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", 1.0),
        (r"\boxed{[0, 1\}}", r"[0, 1\}", 1.0),
        (r"\\boxed{5}", "5", 1.0),
        (r"\boxed{5} \boxed{6", "5", 1.0),
        (r"} \boxed{5}", "5", 1.0),
        (r"\boxed{a \boxed{5} b}", "5", 1.0),
        ("\\boxed{两个 🍎}", "两个 🍎", 1.0),
        # what Hendrycks' last_boxed_only_string reads (hendrycks/math, dataset/util.py)
        (r"so it is $\boxed{2}$.", r"our answer is $\boxed 2$.", 1.0),
        (r"our answer is $\boxed 2$.", r"\boxed{2}", 1.0),
        (r"$\boxed x + 1$.", "x + 1", 1.0),
        (r"so \fbox{2}", "2", 1.0),
        (r"\boxed{2} in a \fbox{3}", "2", 1.0),
        (r"\boxed{2", "2", 0.0),
        # and other legal LaTeX
        (r"\boxed {2}", "2", 1.0),
        (r"\boxed2", "2", 1.0),
        (r"\(\boxed -3.\)", "-3", 1.0),
        (r"so \boxed 2, and 3", "2", 1.0),
        (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}", 1.0),
        (r"\boxed{3} and \boxed 2", "2", 1.0),
        (r"\boxed{\text{\boxed 2 of them}}", "2", 1.0),
        (r"\boxedinput{2}", "2", 0.0),
        (r"put it in \boxed and go on", "and", 0.0),
        # reasoning is no answer
        (r"<think>\boxed{2}</think>\boxed{3}", "2", 0.0),
        (r"<think>\boxed{2}</think>So it is 2.", "2", 0.0),
        (r"<think>\boxed{2}", "2", 0.0),
        (r"\boxed{3}?</think>\boxed{2}", "2", 1.0),
    ],
)
def test_math(scorer, answer, reference, reward):
    assert scorer("orm", "math").reward(answer, reference) == reward


def test_the_answer_that_math_counts_is_the_box(scorer):
    answer_of = scorer("orm", "math").plugin.answer_of
    assert answer_of(r"\boxed{1} or rather \boxed{ x^{2} }.") == "x^{2}"
    assert [answer_of(text) for text in ("18", "", r"\boxed{", r"\boxed{ }")] == [None] * 4


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("<think>2 + 2</think>4", 1.0),
        ("<think>\n2 + 2\n= 4\n</think>\n\nIt is 4.\nSure.", 1.0),
        (" \n<think>2 + 2</think> <answer>4</answer>\n", 1.0),
        ("<think>想一想</think>四", 1.0),
        ("4", 0.0),
        ("", 0.0),
        ("<think>2 + 2</think>", 0.0),
        ("<think>2 + 2</think> \n ", 0.0),
        ("<think></think>4", 0.0),
        ("<think>2 + 2 is 4", 0.0),
        ("2 + 2</think>4", 0.0),
        ("Well: <think>2 + 2</think>4", 0.0),
        ("<think>2</think>3<think>2 + 2</think>4", 0.0),
    ],
)
def test_the_default_format(scorer, answer, reward):
    assert scorer("orm", "format").reward(answer) == reward


def test_a_format_of_ones_own(scorer):
    form = scorer("orm", "format", pattern=r"<answer>.+</answer>")
    assert form.rewards(["<answer>two\nlines</answer>", "so <answer>2</answer>", "<answer></answer>"]) == [1, 0, 0]
    with pytest.raises(UserError, match=r"--orm: format: pattern '\(a' is not a regular expression: .*position 0"):
        scorer("orm", "format", pattern="(a")


SEARCH = 'Thought: I must look.\nAction: search\nAction Input: {"query": "Everest", "limit": 1}'


@pytest.mark.parametrize(
    ("answer", "reference", "reward"),
    [
        ('Action: search\nAction Input: {"limit":1, "query":"Everest"}', SEARCH, 1.0),
        ('Action：search\nAction Input：{"query": "Everest", "limit": 1.0}', SEARCH, 1.0),
        ('Action: search\nAction Input: ```json\n{"query": "Everest", "limit": 1}\n```', SEARCH, 1.0),
        (SEARCH + "\nObservation: 8849 m\nFinal Answer: 8849", SEARCH, 1.0),
        (SEARCH, SEARCH + "\nObservation: 8849 m", 1.0),
        ('Action: search\nAction Input: {"query": "Everest", "limit": true}', SEARCH, 0.0),
        ('Action: search\nAction Input: {"query": "Everest", "limit": "1"}', SEARCH, 0.0),
        ('Action: search\nAction Input: {"query": "Everest"}', SEARCH, 0.0),
        ('Action: Search\nAction Input: {"query": "Everest", "limit": 1}', SEARCH, 0.0),
        (SEARCH + "\nFinal Answer: 8849", SEARCH, 0.0),
        (SEARCH + "\n" + SEARCH, SEARCH, 0.0),
        ("I would use Action: search", SEARCH, 0.0),
        ("", SEARCH, 0.0),
        ("Action: run\nAction Input:  ls -l \n", "Action: run\nAction Input: ls -l", 1.0),
        ("Action: run\nAction Input: ls", "Action: run\nAction Input: ls -l", 0.0),
        ("Action: now\nAction Input: {}", "Action: now", 1.0),
        ("Action: f\nAction Input: [1, 2]", "Action: f\nAction Input: [2, 1]", 0.0),
        ('Action: f\nAction Input: {"名": "山"}', 'Action: f\nAction Input: {"名":"山"}', 1.0),
        ("Thought: easy.\nFinal Answer: 8849 m", "Final Answer:  8849 m\n", 1.0),
        ("Final Answer: 8848 m", "Final Answer: 8849 m", 0.0),
        ("8849 m", "Final Answer: 8849 m", 0.0),
        (SEARCH, "Final Answer: 8849 m", 0.0),
        (" 8849 m", "8849 m", 1.0),
        # reasoning is no answer
        (f"<think>\nAction: guess\nAction Input: 1\n</think>\n\n{SEARCH}", SEARCH, 1.0),
        (f"<think>\n{SEARCH}\n</think>\n\nI would search.", SEARCH, 0.0),
        (f"<think>\n{SEARCH}", SEARCH, 0.0),
        (SEARCH, f"<think>\nAction: guess\n</think>\n{SEARCH}", 1.0),
        ("<think>\nHigh.\n</think>\n\n8849 m", "8849 m", 1.0),
        ("<think>\n8849 m\n</think>\n\n8848 m", "8849 m", 0.0),
        ("Action: f\nAction Input: " + "[" * 100_000, "Action: f", 0.0),
        ("Action: f\nAction Input: " + "9" * 100_000, "Action: f\nAction Input: " + "9" * 100_000, 1.0),
    ],
)
def test_react(scorer, answer, reference, reward):
    assert scorer("orm", "react").reward(answer, reference) == reward


def test_equal_moves_are_one_answer(scorer):
    answer_of = scorer("orm", "react").plugin.answer_of
    same = ['Thought: a\nAction: f\nAction Input: {"a": 1, "b": 2}', 'Action: f\nAction Input: {"b": 2, "a": 1}']
    assert answer_of(same[0]) == answer_of(same[1]) != answer_of('Action: g\nAction Input: {"a": 1, "b": 2}')
    assert answer_of("Hello") == "Hello"
    assert answer_of("") is None


def penalty(words, n, max_penalty):
    """Counted the other way round: every occurrence of an n-gram but the first is a repetition."""
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    return max_penalty * sum(count - 1 for count in counts.values()) / max(counts.total(), 1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("the cat sat on the mat and the cat sat", None),
        ("No no NO no no", ["no"] * 5),
        ("我们我们我们走 go go", [*"我们我们我们走", "go", "go"]),
        ("ない、ない、ない", [*"ない", "、", *"ない", "、", *"ない"]),
        ("🍎 🍎 🍎 🍎", None),
        ("one two", None),
        ("one two three", None),
        ("", None),
        (" \n ", None),
    ],
)
def test_repetition(scorer, answer, words):
    words = answer.split() if words is None else words
    for n, max_penalty in product((1, 2, 3, 4), (-1.0, -0.5, 0.0)):
        reward = scorer("orm", "repetition", n_grams=n, max_penalty=max_penalty).reward(answer)
        assert reward == pytest.approx(penalty(words, n, max_penalty), abs=1e-12)
    assert scorer("orm", "repetition").reward(answer) == pytest.approx(penalty(words, 3, -1.0))


def test_no_repetition_is_a_plain_zero(scorer):
    assert str(scorer("orm", "repetition").reward("all of these words differ")) == "0.0"


@pytest.mark.parametrize(("longest", "margin"), [(100, 20), (100, 100), (7, 3), (400, None)])
def test_length(scorer, longest, margin):
    lengths = [*range(longest + 10), 100_000]
    soft = longest / 5 if margin is None else margin
    expected = np.interp(lengths, [longest - soft, longest], [0, -1])
    rewards = scorer("orm", "length", max_chars=longest, margin_chars=margin).rewards(["字" * it for it in lengths])
    np.testing.assert_allclose(rewards, expected, atol=1e-12)


def by_the_paper(length, longest, at_zero, at_longest):
    """CosFn of arXiv 2502.03373: minimum + (maximum - minimum) / 2 * (1 + cos(pi * t / T))."""
    t = np.minimum(length, longest)
    return at_longest + 0.5 * (at_zero - at_longest) * (1 + np.cos(np.pi * t / longest))


def test_cosine(scorer):
    lengths = np.array([20, 30, 50, 77, 99, 100, 101, 5000])
    answers = [rf"{'x' * (length - 9)}\boxed{{7}}" for length in lengths]
    assert [len(answer) for answer in answers] == lengths.tolist()
    cosine = scorer("orm", "cosine", max_chars=100)
    np.testing.assert_allclose(cosine.rewards(answers, ["7"] * 8), by_the_paper(lengths, 100, 2, 1))
    np.testing.assert_allclose(cosine.rewards(answers, ["8"] * 8), by_the_paper(lengths, 100, -10, 0), atol=1e-12)
    own = scorer("orm", "cosine", max_chars=60, right_short=1, right_long=0.8, wrong_short=-1, wrong_long=0.4)
    np.testing.assert_allclose(own.rewards(answers, ["7"] * 8), by_the_paper(lengths, 60, 1, 0.8))
    assert max(own.rewards(answers, ["8"] * 8)) < own.plugin.right_from < min(own.rewards(answers, ["7"] * 8))
    assert cosine.plugin.right_from == 0.5


def test_cosine_may_judge_by_numbers(scorer):
    answer, reference = "A: 1,000.0", "#### 1000"
    assert scorer("orm", "cosine", max_chars=9000, correct_by="gsm8k").reward(answer, reference) > 1.9
    assert scorer("orm", "cosine", max_chars=9000).reward(answer, reference) < -9
    assert scorer("orm", "cosine", max_chars=9000, correct_by="gsm8k").plugin.answer_of(answer) == "1000"
    unknown = scorer("orm", "cosine", max_chars=9000, correct_by="gsm8k").reward(answer, "none")
    assert isinstance(unknown, Unscored)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {}, "needs the option 'max_chars'"),
        ("cosine", {"max_chars": 9, "wrong_long": 1.0}, "every right one above every wrong one"),
        ("cosine", {"max_chars": 9, "right_short": float("inf")}, "expected finite numbers"),
        ("cosine", {"max_chars": 9, "correct_by": "guess"}, "option 'correct_by': input should be 'math' or 'gsm8k'"),
        ("length", {}, "needs the option 'max_chars'"),
        ("length", {"max_chars": 0}, "option 'max_chars': input should be greater than 0"),
        (
            "length",
            {"max_chars": 10, "margin_chars": 11},
            "margin_chars is 11, expected at most max_chars, which is 10",
        ),
        ("repetition", {"max_penalty": 0.5}, "max_penalty is 0.5, expected a finite number of at most 0"),
        ("repetition", {"max_penalty": float("nan")}, "max_penalty is nan"),
        ("repetition", {"n_grams": 0}, "option 'n_grams': input should be greater than 0"),
        ("math_verify", {"timeout": 0}, "option 'timeout': input should be greater than 0"),
        ("math", {"strict": True}, "takes no option"),
    ],
)
def test_options_out_of_range_are_refused(scorer, name, options, message):
    with pytest.raises(UserError) as error:
        scorer("orm", name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_which_scorers_need_references_and_judge(scorer):
    declared = {
        name: (scorer("orm", name, **options).plugin.needs_reference, scorer("orm", name, **options).plugin.right_from)
        for kind, name, options in [*QUICK, ("orm", "math_verify", {})]
        if kind == "orm"
    }
    assert declared == {
        "math": (True, 0.5),
        "math_verify": (True, 0.5),
        "gsm8k": (True, 0.5),
        "react": (True, 0.5),
        "cosine": (True, 0.5),
        "format": (False, 0.5),
        "repetition": (False, None),
        "length": (False, None),
    }


@pytest.mark.parametrize(("name", "options"), COMPARING)
def test_without_a_reference_nothing_is_guessed(scorer, name, options):
    orm = scorer("orm", name, **options)
    first, second = orm.rewards([r"\boxed{1}", r"\boxed{1}"], [None, r"\boxed{1}"])
    assert first == Unscored("there is no reference to compare with")
    assert second >= orm.plugin.right_from


@pytest.mark.parametrize(("kind", "name", "options"), QUICK)
def test_rewards_are_in_the_order_of_the_answers(scorer, kind, name, options):
    scores = scorer(kind, name, **options)
    answers = ["\\boxed{1}", "", "#### 2", "1 + 1 = 3", "<think>a</think>b", "Final Answer: 1", "no " * 200, "两个🍎"]
    references = ["1", "2", "3", "4", "5", "Final Answer: 1", "no", "两个🍎"]
    together = scores.rewards(answers, references)
    assert together == [scores.reward(*pair) for pair in zip(answers, references, strict=True)]
    assert scores.rewards([], []) == []


@pytest.mark.parametrize(("kind", "name", "options"), QUICK)
def test_five_thousand_candidates_take_seconds(scorer, kind, name, options):
    step = "Step {}: Ana has 16 - 3 - 4 = <<16-3-4=9>>9 eggs, and sells 9 * 2 = $18 of them.\n"
    answers = [f"{step.format(1)}{step.format(2)}#### {number}" for number in range(5000)]
    scores = scorer(kind, name, **options)
    start = time.perf_counter()
    rewards = scores.rewards(answers, answers)
    assert time.perf_counter() - start < 10  # under one on an idle machine
    assert len(rewards) == 5000


LONG = 100_000
ENDLESS = {
    "one letter": "a" * LONG,
    "white space": " " * LONG,
    "empty lines": "\n" * LONG,
    "digits": "9" * LONG,
    "numbers": "1 " * (LONG // 2),
    "thousands": "1,000," * (LONG // 6),
    "decimals": ".1" * (LONG // 2),
    "open boxes": "\\boxed{" * (LONG // 7),
    "braces": "{}" * (LONG // 2),
    "open parentheses": "1=(" + "(" * LONG,
    "markers": "#### " * (LONG // 5),
    "markers on lines": "####\n" * (LONG // 5),
    "answers": "A:\n" * (LONG // 3),
    "dollars": "$" * LONG,
    "minuses": "-" * LONG,
    "equals": "=" * LONG,
    "dashes and equals": "-=" * (LONG // 2),
    "stars": "*" * LONG,
    "backslashes": "\\" * LONG,
    "fractions": "\\frac{" * (LONG // 6),
    "chain": "1+1=" * (LONG // 4),
    "sum of fractions": "+".join(f"1/{number}" for number in range(3, LONG // 7)) + "=1",
    "product": "*".join(["97"] * (LONG // 3)) + "=1",
    "power tower": "2^" * (LONG // 2) + "2=4",
    "annotations": "<<1+1=2" * (LONG // 7),
    "steps": "Step 1:\n" * (LONG // 8),
    "tags": "<think>" * (LONG // 7),
    "closed tags": "<think>a</think>" * (LONG // 16),
    "actions": "Action: a\n" * (LONG // 10),
    "Chinese": "好" * LONG,
    "emoji": "😀1+1=2" * (LONG // 7),
}


@pytest.mark.parametrize(("kind", "name", "options"), QUICK)
def test_no_text_is_slow(scorer, kind, name, options):
    scores = scorer(kind, name, **options)
    for what, text in ENDLESS.items():
        start = time.perf_counter()
        scores.rewards([text, text], ["18", text])
        assert time.perf_counter() - start < 5, what


def test_scoring_imports_no_torch():
    code = (
        "import sys\n"
        "from swiftplug.plugin.registry import PluginChoice\n"
        "from swiftplug.plugin.registry import Registry\n"
        "from swiftplug.plugin.rewards import InferRequest\n"
        "request = InferRequest([{'role': 'assistant', 'content': '1 + 1 = 2'}])\n"
        f"for kind, name, options in {[*QUICK, ('orm', 'math_verify', {})]!r}:\n"
        "    plugin = Registry.discover().resolve(kind, PluginChoice(name=name, options=options), '').bound\n"
        "    plugin([request], ground_truths=['2'])\n"
        "print(*sorted({'torch', 'transformers', 'datasets', 'numpy', 'sympy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
