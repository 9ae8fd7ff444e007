"""Is the answer equal to the reference as mathematics? By the library math-verify, in a process of its own."""

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

from swiftplug.builtin.boxed import last_boxed
from swiftplug.builtin.orms.compared import Compared
from swiftplug.builtin.orms.gsm8k import final_number
from swiftplug.plugin.rewards import Unscored

MAX_CHARS = 1000  # of a final answer, and of the end of a text in which one is looked for
TIMED_OUT = 1  # what the process exits with when its watchdog ends it
CACHED = 4096  # comparisons; the candidates of a row often agree

# A word that something follows, a Chinese one, a formula set off, the mark of GSM8K: not LaTeX as a whole.
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}[:,.]?\s|[\u3400-\u9fff]|\$|\\[(\[]|####|\n")
_CHINESE = re.compile(r"[\u3000-\u303f\u3400-\u9fff，：；！？]")  # math-verify finds numbers behind spaces only


class Statement(NamedTuple):
    """What a text states as its answer.

    Attributes:
        text: LaTeX, or a text that has the answer somewhere.
        is_latex: Which of the two.
    """

    text: str
    is_latex: bool


class MathVerify(Compared):
    r"""1.0 if math-verify finds the answer equal to the reference, else 0.0: `\frac{1}{2}`, `0.5` and `1/2` are equal.

    Compared is the content of the last `\boxed{...}`; a text without one, an answer or a reference, is taken as LaTeX
    if it is a formula or a number only, and else searched from its end, by the rules of math-verify, for a formula, a
    number behind `answer is`, or any number. Numbers with decimals are equal if they agree to six places.

    Formulas can be written that take hours to compare (`9^{9^{9}}`), and a thread that does cannot be stopped.
    Comparisons are therefore made in another process, which is started with the first and ended when one takes too
    long; that candidate is `Unscored`, and the next comparison starts a new process.
    """

    def __init__(self, timeout: PositiveFloat = 5.0) -> None:
        """Set the patience.

        Args:
            timeout: Seconds that one comparison may take.
        """
        self.timeout = timeout
        self._lock = threading.Lock()  # batches may be scored in several threads
        self._process: subprocess.Popen[str] | None = None
        self._compare = lru_cache(CACHED)(self._ask)

    def score(self, answer: str, reference: str) -> float | Unscored:
        """1.0 for an equal answer, else 0.0."""
        found, expected = stated(answer), stated(reference)
        if not found.text or len(found.text) > MAX_CHARS:
            return 0.0
        return 1.0 if found == expected else self._compare(found, expected)

    def answer_of(self, text: str) -> str | None:
        """The content of the last box, or else the final number, as `gsm8k` reads it."""
        return (last_boxed(text) or "").strip() or final_number(text)

    def _ask(self, found: Statement, expected: Statement) -> float | Unscored:
        with self._lock:
            if self._process is None:
                self._process = self._start()
            process = self._process
            assert process.stdin
            assert process.stdout
            with suppress(BrokenPipeError):  # it ended meanwhile, and gives no verdict
                process.stdin.write(json.dumps([found, expected]) + "\n")
                process.stdin.flush()
            if verdict := process.stdout.readline():
                return 1.0 if json.loads(verdict) else 0.0
            code = process.wait()
            self._stop()
            self._process = None
        if code == TIMED_OUT:
            return Unscored(f"math-verify gave no verdict within {self.timeout:g} s")
        return Unscored(f"the process of math-verify ended with code {code}")

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-P", "-m", "swiftplug.builtin.orms.math_verify_process", str(self.timeout)]
        # A session of its own, so that Ctrl-C reaches this process only; the other ends when its input does.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._stop = weakref.finalize(self, _end, process)
        assert process.stdout
        if not process.stdout.readline():
            raise RuntimeError(f"the process of math-verify did not start: exit code {process.wait()}")
        return process


def stated(text: str) -> Statement:
    r"""What a text states as its answer.

    Example:
        >>> stated(r"So it is \boxed{ x+1 }."), stated("x + 1"), stated("The answer is 18.")[1]
        (Statement(text='x+1', is_latex=True), Statement(text='x + 1', is_latex=True), False)
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return Statement(boxed.strip(), is_latex=True)
    text = text.strip()[-MAX_CHARS:]
    return Statement(_CHINESE.sub(" ", text), is_latex=not _PROSE.search(text))


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()  # closes the pipes
