"""The ORM that compares answers as mathematics, with the library math-verify in a separate process."""

import json
import re
import subprocess
import sys
import threading
import unicodedata
import weakref
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from pydantic import PositiveFloat

from swiftplug.builtin.boxed import answer_part, has_open_box, last_boxed
from swiftplug.builtin.numbers import join_groups, plain_numbers, without_powers
from swiftplug.builtin.orms.gsm8k import final_number
from swiftplug.builtin.orms.matching import ComparingORM
from swiftplug.plugin import Unscored

MAX_CHARS = 1000  # of a final answer, and of the end of a text in which one is looked for
TIMED_OUT = 1  # exit code of the process when its watchdog ends it
CACHE_SIZE = 4096  # comparisons; the candidates of a row often have the same answer

# What a text that is LaTeX as a whole does not have: words, Chinese, a delimited formula, GSM8K's marker.
_PROSE = re.compile(
    r"(?<![\\A-Za-z{])[A-Za-z]{2,}[:,.]?\s|[A-Za-z]:\s|\s[A-Za-z]{2,}[.]?$|[\u3400-\u9fff]|\$|\\[(\[]|####|\n"
)
_MIXED_NUMBER = re.compile(r"(?<![\d.])(\d+) (\d+)/(\d+)(?![\d./])")
_HAS_FORMULA = re.compile(
    r"\\[A-Za-z(\[]|\$[^$\n]+\$|√|[A-Za-z]\(|(?<![A-Za-z])[a-z]\s*[-+*/^]|[-+*/^]\s*[a-z](?![a-z])"
)
_EMPHASIS = re.compile(r"\*{2,3}(?!\d)|(?<![\d)])\*{2,3}|`")
_PERCENT = re.compile(r"\d\s*%[\s.。)]*$")
# What math-verify does not read in a formula, and LaTeX for it; a currency or a unit is left out.
_SYMBOLS = str.maketrans({"∞": r"\infty ", "∪": r"\cup ", "±": r"\pm ", "°": r"^\circ ", "·": r"\cdot ", "~": " "})
_ROOT = re.compile(r"√\s*(\d+|[a-z]|\([^()]*\))")
_POWER = re.compile(r"(?<=[A-Za-z])[⁻⁰¹²³⁴-⁹]+")
_CURRENCY = re.compile(r"(?:US)?\\?[$€£¥₹](?=[\d.])")
_UNIT = re.compile(
    r"(?<=[\d}])(?:\s|\\,)*(?:(?:[cmk]m|ft|in|units?)\^(?:2|3|\{[23]\})|(?![万亿百十]|千(?![克米]))[\u3400-\u9fff]{1,4})$"
)


class Statement(NamedTuple):
    """What a text states as its answer: LaTeX, or prose that contains the answer."""

    text: str
    is_latex: bool


class MathVerify(ComparingORM):
    r"""1.0 if math-verify finds answer and reference equal, else 0.0: `\frac{1}{2}`, `0.5` and `1/2` are equal.

    Compared is the content of the last `\boxed{...}`, within `<answer>...</answer>` if there is such a tag. A box that
    is never closed, or one in `<think>...</think>`, is no answer. A text without one, answer or reference, is read as
    LaTeX if it is only a formula or a number. In prose math-verify searches for a formula from the end; prose without
    one states a number, as `gsm8k` reads it.
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
        return (last_boxed(answer_part(text)) or "").strip() or final_number(text)

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
        >>> stated_answer(r"So it is \boxed{ x+1 }."), stated_answer("It is $x+1$."), stated_answer("I have 18.").text
        (Statement(text='x+1', is_latex=True), Statement(text='It is $x+1$.', is_latex=False), '18')
    """
    text = answer_part(text)
    boxed = last_boxed(plain_numbers(text))
    if boxed is not None or has_open_box(text):
        return Statement(_formula(boxed or ""), is_latex=True)
    text = _EMPHASIS.sub("", text).strip()[-MAX_CHARS:]
    if not _PROSE.search(text):
        return Statement(_formula(plain_numbers(text)), is_latex=True)
    number = None if _HAS_FORMULA.search(text) else final_number(text)
    percent = r"\%" if number and _PERCENT.search(text) else ""
    return Statement(f"{number or plain_numbers(text)}{percent}", is_latex=number is not None)


def _formula(text: str) -> str:
    """A formula with plain numbers, as math-verify reads it."""
    text = _POWER.sub(lambda it: f"^{{{unicodedata.normalize('NFKC', it[0])}}}", text)
    text = _ROOT.sub(lambda it: rf"\sqrt{{{it[1]}}}", _CURRENCY.sub("", text)).replace("或", ",").replace("和", ",")
    text = without_powers(join_groups(text)).translate(_SYMBOLS).lstrip("≈约 \n").rstrip(".,; \n")
    return _MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", _UNIT.sub("", text))


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()  # closes the pipes
