r"""Is the final number the right one? For GSM8K, and for whatever else ends in a number."""

import re

from swiftplug.builtin.boxed import last_box
from swiftplug.builtin.orms.compared import Compared
from swiftplug.plugin.rewards import Unscored

# Full-width forms of ASCII (Chinese texts write １８ and １，０００) and the true minus sign.
_ASCII = {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)} | {0x2212: "-"}

_DIGITS = (
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?P<part>\.[0-9]+)?|(?<![A-Za-z0-9.])(?P<bare>\.[0-9]+))"
)
# A minus behind a number or a bracket subtracts; one behind a letter is a hyphen.
_NUMBER = re.compile(rf"(?P<sign>(?<![A-Za-z0-9)%\]}}])(?<![0-9)%\]}}] )-)?[$€£¥￥₹\\]{{0,3}}(?>{_DIGITS})")
# What a stated answer begins with. Not the start of a calculation, nor the number of a heading (`#### 2. So`).
_STATED = re.compile(rf"(?:[\s*_$({{]|\\[($]|\\text)*+{_NUMBER.pattern}(?!\s*[-+*/^×÷]\s*[\d(]|[.):]\s+\w)")
_ANSWER_LINE = re.compile(r"[\s*_>]*A(?:nswer)?\s*:")
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\[!,]|(?<=!),|,(?=\\!))+(?=\d)")


class GSM8K(Compared):
    r"""1.0 if the final number of the answer is that of the reference, else 0.0.

    The final number is what the answer states last: behind `####` (GSM8K, arXiv 2110.14168), behind `A:` or `Answer:`
    on the last line, or in a `\boxed{...}`; the last number of the text where it states none. Commas, currency signs,
    units, percent signs and the writing of decimals make no difference: `$1,000.00`, `1000` and `1000 dollars` are one
    number. The minus of `48-24` is no sign. Fractions are not read; `math_verify` compares them.

    A candidate whose reference has no number is `Unscored`.

    Example:
        >>> GSM8K().score("She makes 9 * 2 = $18 every day.\n#### $18.00", "#### 18")
        1.0
    """

    def score(self, answer: str, reference: str) -> float | Unscored:
        """1.0 for the right number, else 0.0."""
        expected = final_number(reference)
        if expected is None:
            return Unscored(f"the reference has no number: {reference[:60]!r}")
        return float(final_number(answer) == expected)

    def answer_of(self, text: str) -> str | None:
        """The final number, as `final_number` writes it."""
        return final_number(text)


def final_number(text: str) -> str | None:
    r"""The number that a text ends in, written in one way: no sign but a minus, no comma, no zeros that say nothing.

    Args:
        text: An answer, or a reference.

    Returns:
        The number, exact, whatever its length; None where there is none.

    Example:
        >>> [final_number(text) for text in ("#### 1,000.50", r"so \boxed{-\$07}", "A: .5 miles", "none")]
        ['1000.5', '-7', '0.5', None]
    """
    text = _LATEX_COMMA.sub(",", text.translate(_ASCII))
    box = last_box(text)
    behind = text[box.end :] if box else text
    stated = _behind_mark(behind.rstrip().splitlines())
    if stated is not None:
        return stated
    if box:  # a box that holds no number is an answer that is none
        return _stated(box.content)
    numbers = [*_NUMBER.finditer(text)]
    return _written(numbers[-1]) if numbers else None


def _behind_mark(lines: list[str]) -> str | None:
    """The number that a line states as the answer: the last line may by `A:`, any by `####`; the last one counts."""
    if lines and (mark := _ANSWER_LINE.match(lines[-1])) and (number := _stated(lines[-1][mark.end() :])):
        return number
    marked = (line.rpartition("####") for line in reversed(lines))
    return next((number for _, mark, rest in marked if mark and (number := _stated(rest))), None)


def _stated(statement: str) -> str | None:
    """The number that a statement begins with, behind its last equals sign."""
    number = _STATED.match(statement.rpartition("=")[2])
    return number and _written(number)


def _written(number: re.Match[str]) -> str:
    whole = (number["whole"] or "").replace(",", "").lstrip("0")
    part = (number["part"] or number["bare"] or "").rstrip("0").rstrip(".")
    digits = (whole or "0") + part
    return f"-{digits}" if number["sign"] and digits != "0" else digits
