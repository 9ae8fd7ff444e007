"""The ORM that compares answers as mathematics, with the library math-verify in a separate process."""

import json
import re
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from pydantic import PositiveFloat

from swiftplug.builtin.boxed import has_open_box, last_boxed, tagged_answer
from swiftplug.builtin.numbers import join_groups, plain_numbers
from swiftplug.builtin.orms.gsm8k import final_number
from swiftplug.builtin.orms.matching import ComparingORM
from swiftplug.plugin import Unscored

MAX_CHARS = 1000  # of a final answer, and of the end of a text in which one is looked for
TIMED_OUT = 1  # exit code of the process when its watchdog ends it
CACHE_SIZE = 4096  # comparisons; the candidates of a row often have the same answer

# What a text that is LaTeX as a whole does not have: words, Chinese, a delimited formula, GSM8K's marker.
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}[:,.]?\s|\s[A-Za-z]{2,}[.]?$|[\u3400-\u9fff]|\$|\\[(\[]|####|\n")
_MIXED_NUMBER = re.compile(r"(?<![\d.])(\d+) (\d+)/(\d+)(?![\d./])")
_EMPHASIS = re.compile(r"\*\*(?!\d)|(?<![\d)])\*\*|`")
_CHINESE = re.compile(r"[\u3000-\u303f\u3400-\u9fff，：；！？]")  # math-verify finds numbers only after spaces


class Statement(NamedTuple):
    """What a text states as its answer: LaTeX, or prose that contains the answer."""

    text: str
    is_latex: bool


class MathVerify(ComparingORM):
    r"""1.0 if math-verify finds answer and reference equal, else 0.0: `\frac{1}{2}`, `0.5` and `1/2` are equal.

    Compared is the content of the last `\boxed{...}`, within `<answer>...</answer>` if there is such a tag. A box that
    is never closed is no answer. A text without one, answer or reference, is read as LaTeX if it is only a formula or
    a number; otherwise math-verify searches it from its end for a formula, a number after `answer is`, or any number.
    Numbers with decimals are equal if they agree to six places.

    Some formulas take hours to compare (`9^{9^{9}}`), and a thread that compares them cannot be stopped. Comparisons
    therefore run in another process. It starts with the first comparison and is ended when one takes too long; that
    candidate is `Unscored`, and the next comparison starts a new process.
    """

    def __init__(self, timeout: PositiveFloat = 5.0) -> None:
        """Set the time limit.

        Args:
            timeout: Seconds that one comparison may take.
        """
        self.timeout = timeout
        self._lock = threading.Lock()  # batches may be scored in several threads
        self._process: subprocess.Popen[str] | None = None
        self._compare = lru_cache(CACHE_SIZE)(self._compare_in_process)

    def score(self, answer: str, reference: str) -> float | Unscored:
        """1.0 for an equal answer, else 0.0."""
        found, expected = stated_answer(answer), stated_answer(reference)
        if not found.text or len(found.text) > MAX_CHARS:
            return 0.0
        return 1.0 if found == expected else self._compare(found, expected)

    def answer_of(self, text: str) -> str | None:
        """The content of the last box, or else the final number, as `gsm8k` reads it."""
        return (last_boxed(tagged_answer(text)) or "").strip() or final_number(text)

    def _compare_in_process(self, found: Statement, expected: Statement) -> float | Unscored:
        with self._lock:
            if self._process is None:
                self._process = self._start_process()
            process = self._process
            assert process.stdin
            assert process.stdout
            with suppress(BrokenPipeError):  # the process has ended; it gives no verdict
                process.stdin.write(json.dumps([found, expected]) + "\n")
                process.stdin.flush()
            if verdict := process.stdout.readline():
                return 1.0 if json.loads(verdict) else 0.0
            code = process.wait()
            self._end_process()
            self._process = None
        if code == TIMED_OUT:
            return Unscored(f"math-verify gave no verdict within {self.timeout:g} s")
        return Unscored(f"the process of math-verify ended with code {code}")

    def _start_process(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-P", "-m", "swiftplug.builtin.orms.math_verify_process", str(self.timeout)]
        # In a new session, so that Ctrl-C reaches only this process; the other one ends when its input does.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._end_process = weakref.finalize(self, _end, process)
        assert process.stdout
        if not process.stdout.readline():
            raise RuntimeError(f"the process of math-verify did not start: exit code {process.wait()}")
        return process


def stated_answer(text: str) -> Statement:
    r"""What a text states as its answer.

    Example:
        >>> stated_answer(r"So it is \boxed{ x+1 }."), stated_answer("x + 1"), stated_answer("The answer is 18.")[1]
        (Statement(text='x+1', is_latex=True), Statement(text='x + 1', is_latex=True), False)
    """
    text = _MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", plain_numbers(tagged_answer(text)))
    boxed = last_boxed(text)
    if boxed is not None or has_open_box(text):
        return Statement(join_groups(boxed or "").strip(), is_latex=True)
    text = _EMPHASIS.sub("", text).strip()[-MAX_CHARS:]
    return Statement(_CHINESE.sub(" ", text), is_latex=not _PROSE.search(text))


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()  # closes the pipes
