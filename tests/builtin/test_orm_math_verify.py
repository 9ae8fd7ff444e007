"""Equality as mathematics, and what becomes of formulas that never finish."""

import gc
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sympy import Rational, latex

from swiftplug.plugin.rewards import Unscored

pytest.importorskip("math_verify")

PROCESSES = Path("/proc")


@pytest.fixture(scope="module")
def math_verify(scorer):
    return scorer("orm", "math_verify", timeout=20)


@pytest.mark.parametrize(
    ("answer", "reference", "reward"),
    [
        (r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", 1.0),
        (r"\boxed{1/2}", "0.5", 1.0),
        (r"\boxed{1/2}", 0.5, 1.0),
        (r"\boxed{2}", 2, 1.0),
        (r"\boxed{2}", 3, 0.0),
        (r"\boxed{3}, no, \boxed{2}", "2", 1.0),
        (r"\boxed{2}, no, \boxed{3}", "2", 0.0),
        (r"\boxed{x^2+1}", "1 + x^2", 1.0),
        (r"\boxed{x^2+1}", "1", 0.0),
        (r"\boxed{(x+1)^2}", r"x^2 + 2x + 1", 1.0),
        (r"\boxed{2\sqrt{2}}", r"$\sqrt{8}$", 1.0),
        (r"\boxed{\sin^2 x + \cos^2 x}", "1", 1.0),
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}", 1.0),
        (r"\boxed{(2, 1)}", "(1, 2)", 0.0),
        (r"\boxed{1,000}", "1000", 1.0),
        (r"\boxed{18\text{ dollars}}", "18", 1.0),
        (r"\boxed{0.3333333}", r"\frac{1}{3}", 1.0),
        (r"\boxed{0.33}", r"\frac{1}{3}", 0.0),
        (r"\boxed{\text{even}}", "even", 1.0),
        (r"\boxed{odd}", "even", 0.0),
        (r"The answer is $\frac{3}{4}$.", "0.75", 1.0),
        ("So it is 18.", "18.0", 1.0),
        ("18", "18", 1.0),
        ("18 / 2", "9", 1.0),
        ("答案是18", "18", 1.0),
        ("9 * 2 = $<<9*2=18>>18\n#### 18", "16 - 3 - 4 = 9\n#### 18", 1.0),
        ("9 * 2 = $<<9*2=18>>18\n#### 18", "16 - 3 - 4 = 9\n#### 9", 0.0),
        ("I do not know", "18", 0.0),
        # tags, and boxes without an end
        ("<think>3</think><answer>1/2</answer>", "0.5", 1.0),
        (r"<think>\boxed{3}</think><answer>4</answer>", "3", 0.0),
        (r"<think>3</think><answer>so \boxed{4}</answer>", "<answer>4</answer>", 1.0),
        ("<answer>3</answer><answer>\n18 dollars\n</answer> (not 7)", "18", 1.0),
        (r"The answer is \boxed{18", "18", 0.0),
        (r"$\boxed 2$", "2", 1.0),
        # typography
        ("１８", "18", 1.0),
        (r"\boxed{1\,234}", "1,234", 1.0),
        (r"\boxed{1 234}", "1234", 1.0),
        ("The answer is 1\u202f234.", "1234", 1.0),
        ("The answer is −5.", "-5", 1.0),
        (r"\boxed{1.5e3}", "1500", 1.0),
        (r"\boxed{2½}", "2.5", 1.0),
        ("2 1/2", "2.5", 1.0),
        ("It is **18**.", "18", 1.0),
        ("**18**", "18", 1.0),
        (r"\boxed{3.5 x 10^4}", "35000", 1.0),
        ("It is 3.5 × 10⁴ km.", "35000", 1.0),
        (r"\boxed{10^{-3}}", "0.001", 1.0),
        ("The answer is 3½ cups.", "3.5", 1.0),
        ("The answer is 3 1/2.", "3.5", 1.0),
        ("A: 18", "#### 18", 1.0),
        ("The answer is 16-3-4=9", "9", 1.0),
        ("It is 25%.", "0.25", 1.0),
        ("It is 25%.", "25", 1.0),
        (r"\boxed{18.}", "18", 1.0),
        (r"\boxed{≈ 3.14}", "3.14", 1.0),
        (r"\boxed{€18}", "18", 1.0),
        (r"\boxed{60°}", "60", 1.0),
        (r"\boxed{18\,cm^2}", "18", 1.0),
        (r"\boxed{18~\text{m/s}}", "18", 1.0),
        (r"\boxed{2 ± √3}", r"2 \pm \sqrt{3}", 1.0),
        (r"\boxed{√(x+1)}", r"\sqrt{x+1}", 1.0),
        (r"\boxed{x² + 1}", "x^2+1", 1.0),
        (r"\boxed{(−∞, 2) ∪ (3, ∞)}", r"(-\infty,2)\cup(3,\infty)", 1.0),
        ("The answer is x+1", "1", 0.0),
        # Chinese
        ("答案：18", "18", 1.0),
        ("**答案：** $\\frac{1}{2}$", "0.5", 1.0),
        ("故答案为：18。", "18", 1.0),
        ("答案是负3", "-3", 1.0),
        (r"\boxed{18元}", "18", 1.0),
        (r"\boxed{约18 千克}", "18", 1.0),
        (r"\boxed{x=2或x=3}", "2, 3", 1.0),
        (r"\boxed{18万}", "18", 0.0),
        (r"\boxed{5小时30分钟}", "530", 0.0),
        (r"\boxed{甲}", "乙", 0.0),
        (r"\boxed{甲队3人}", "乙队3人", 0.0),
        # reasoning is no answer
        (r"<think>\boxed{5}</think>The answer is 7.", "7", 1.0),
        (r"<think>\boxed{5}</think>The answer is 7.", "5", 0.0),
        (r"<think>\boxed{5}</think>", "5", 0.0),
        (r"<think>So \boxed{5}", "5", 0.0),
        (r"\boxed{4}, no </think>\boxed{5}", "5", 1.0),
        (r"\boxed{5} <think>Right?</think>", "5", 1.0),
        ("", "18", 0.0),
        ("", "", 0.0),
        ("😀", "18", 0.0),
        ("\ud800", "18", 0.0),
        ("x" * 100_000, "18", 0.0),
        (rf"\boxed{{{'1' * 100_000}}}", "18", 0.0),
    ],
)
def test_equal_as_mathematics(math_verify, answer, reference, reward):
    assert math_verify.reward(answer, reference) == reward


def test_fractions_in_any_form(math_verify):
    rng = random.Random(7)
    for _ in range(40):
        number = Rational(rng.randint(-99, 99), rng.choice([2, 4, 5, 8, 10, 20]))
        forms = [latex(number), f"{number.p}/{number.q}", f"{float(number)}", latex(number * 3) + r"\div 3"]
        found, reference = rng.sample(forms, 2)
        assert math_verify.reward(rf"\boxed{{{found}}}", rf"\boxed{{{reference}}}") == 1.0, (found, reference)
        assert math_verify.reward(rf"\boxed{{{found}}}", rf"\boxed{{{latex(number + 1)}}}") == 0.0, number


def test_the_answer_that_counts(math_verify):
    answer_of = math_verify.plugin.answer_of
    assert [answer_of(it) for it in (r"\boxed{ x+1 }", "#### 1,000", "none")] == ["x+1", "1000", None]


def test_it_works_in_any_thread_and_in_several(math_verify):
    rewards = {}

    def score(worker):
        answers = [rf"\boxed{{{number}/7}}" for number in range(20)]
        references = [rf"\frac{{{number}}}{{7}}" for number in range(worker, worker + 20)]
        rewards[worker] = math_verify.rewards(answers, references)

    threads = [threading.Thread(target=score, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rewards == {0: [1.0] * 20, 1: [0.0] * 20, 2: [0.0] * 20}


def test_what_never_finishes_is_unscored_and_the_rest_is_scored(scorer):
    impatient = scorer("orm", "math_verify", timeout=3)
    start = time.monotonic()
    endless = [r"\boxed{9^{9^{9}}}"] * 50  # asked once
    first, *rewards, last = impatient.rewards([r"\boxed{1}", *endless, r"\boxed{0.5}"], ["1.0", *["1"] * 50, "1/2"])
    assert (first, last) == (1.0, 1.0)
    assert set(rewards) == {Unscored("math-verify gave no verdict within 3 s")}
    assert time.monotonic() - start < 60


def test_a_process_that_dies_is_replaced(scorer):
    orm = scorer("orm", "math_verify", timeout=20)
    assert orm.reward(r"\boxed{0.5}", "1/2") == 1.0
    orm.plugin._process.kill()  # as the kernel does when memory runs out
    assert orm.reward(r"\boxed{0.25}", "1/4") == Unscored("the process of math-verify ended with code -9")
    assert orm.reward(r"\boxed{0.75}", "3/4") == 1.0


def test_the_process_ends_with_its_scorer(scorer):
    orm = scorer("orm", "math_verify")
    assert orm.reward(r"\boxed{0.5}", "1/2") == 1.0
    process = orm.plugin._process
    assert process.poll() is None
    del orm
    gc.collect()
    assert process.poll() is not None


@pytest.mark.skipif(not PROCESSES.is_dir(), reason="needs /proc to see other processes")
def test_the_process_ends_with_a_run_that_is_killed():
    code = (
        "from swiftplug.builtin.orms.math_verify import MathVerify\n"
        "orm = MathVerify()\n"
        r"orm.score(r'\boxed{0.5}', '1/2')" + "\n"
        "print(orm._process.pid, flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(run.stdout.readline())
    assert (PROCESSES / str(pid)).exists()
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 20
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(pid)


def running(pid):
    try:
        return (PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
