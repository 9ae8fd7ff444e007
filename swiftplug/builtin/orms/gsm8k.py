r"""The ORM for answers that end in a number, such as GSM8K's."""

import re

from swiftplug.builtin.boxed import last_box
from swiftplug.builtin.orms.matching import ComparingORM
from swiftplug.plugin import Unscored

# Full-width forms of ASCII (Chinese texts have １８ and １，０００) and the minus sign of mathematics.
_ASCII = {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)} | {0x2212: "-"}

_DIGITS = (
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?P<part>\.[0-9]+)?|(?<![A-Za-z0-9.])(?P<bare>\.[0-9]+))"
)
# A minus after a number or a bracket subtracts; one after a letter is a hyphen.
_NUMBER = re.compile(rf"(?P<sign>(?<![A-Za-z0-9)%\]}}])(?<![0-9)%\]}}] )-)?[$€£¥￥₹\\]{{0,3}}(?>{_DIGITS})")
# How a stated answer begins. Not the start of a calculation, nor the number of a heading (`#### 2. So`).
_STATED = re.compile(rf"(?:[\s*_$({{]|\\[($]|\\text)*+{_NUMBER.pattern}(?!\s*[-+*/^×÷]\s*[\d(]|[.):]\s+\w)")
_ANSWER_LINE = re.compile(r"[\s*_>]*A(?:nswer)?\s*:")
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\[!,]|(?<=!),|,(?=\\!))+(?=\d)")


class GSM8K(ComparingORM):
    r"""1.0 if the answer's final number equals the reference's (GSM8K, arXiv 2110.14168), else 0.0.

    The final number is the one that the answer states last: after `####`, after `A:` or `Answer:` on the last line, or
    in a `\boxed{...}`; if it states none, the last number of the text. Commas, currency signs, units, percent signs
    and trailing zeros make no difference: `$1,000.00`, `1000` and `1000 dollars` are equal. The minus of `48-24` is not
    a sign. Fractions are not read; `math_verify` compares them.

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
        """The final number, in canonical form."""
        return final_number(text)


def final_number(text: str) -> str | None:
    r"""The number that a text ends in, in one canonical form: no sign but a minus, no commas, no needless zeros.

    Args:
        text: An answer, or a reference.

    Returns:
        The number, exact, whatever its length; None if there is none.

    Example:
        >>> [final_number(text) for text in ("#### 1,000.50", r"so \boxed{-\$07}", "A: .5 miles", "none")]
        ['1000.5', '-7', '0.5', None]
    """
    text = _LATEX_COMMA.sub(",", text.translate(_ASCII))
    box = last_box(text)
    lines = (text[box.end :] if box else text).rstrip().splitlines()
    if lines and (label := _ANSWER_LINE.match(lines[-1])) and (number := _stated_number(lines[-1][label.end() :])):
        return number
    for line in reversed(lines):
        _, marker, statement = line.rpartition("####")
        if marker and (number := _stated_number(statement)):
            return number
    if box:  # a box without a number is an answer without one
        return _stated_number(box.content)
    numbers = [*_NUMBER.finditer(text)]
    return _canonical(numbers[-1]) if numbers else None


def _stated_number(statement: str) -> str | None:
    """The number that a statement begins with, after its last equals sign."""
    number = _STATED.match(statement.rpartition("=")[2])
    return number and _canonical(number)


def _canonical(number: re.Match[str]) -> str:
    whole = (number["whole"] or "").replace(",", "").lstrip("0")
    part = (number["part"] or number["bare"] or "").rstrip("0").rstrip(".")
    digits = (whole or "0") + part
    return f"-{digits}" if number["sign"] and digits != "0" else digits
