r"""The ORM for answers that end in a number, such as GSM8K's."""

import re
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from functools import lru_cache

from swiftplug.builtin.boxed import answer_part, has_open_box, last_box
from swiftplug.builtin.numbers import join_groups, plain_numbers, without_powers
from swiftplug.builtin.orms.matching import ComparingORM
from swiftplug.plugin import Unscored

# Commas separate groups of three (1,000) or, in India, of two and three (1,00,000). Any other comma between two numbers
# may be that of a decimal (1,5): a number with one in it is read as it is written.
_DIGITS = r"""(?P<digits>
    (?: [0-9]{1,3}(?:,[0-9]{3})+(?![0-9]) | [0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])
      | (?<![0-9][.,])(?P<unclear>[0-9]+,[0-9]+)(?![0-9]|[.,][0-9]) | [0-9]+) (?:\.[0-9]+)?
    | (?<![A-Za-z0-9.])\.[0-9]+
    )"""
_FRACTION = r"""(?<![0-9/.,])(?:(?P<mixed>[0-9]{1,18})[ ]+(?:and[ ]+)?)?
    (?P<over>[0-9]{1,18})[ ]?/[ ]?(?P<under>[1-9][0-9]{0,17})(?![0-9]|[ ]?/|[.,][0-9])"""
# A minus after a number or a bracket subtracts; one after a letter is a hyphen.
_NUMBER = re.compile(
    rf"""(?P<sign>(?<![A-Za-z0-9)%\]}}])(?<![0-9)%\]}}][ ])-)?
    (?:[$¢£¥฿₡-₿€￥\\]{{1,3}}[ ]?)? (?>{_FRACTION} | {_DIGITS})""",
    re.VERBOSE,
)
# How a stated answer begins. Not the start of a calculation, nor the number of a heading (`#### 2. So`).
_STATED = re.compile(
    rf"""(?:[\s*_$({{\[`"'“”‘’≈~+约共是为]|\\[(\[$]|\\(?:text|math)?(?:bf|rm|it)?(?![a-z])|\\approx|[A-Z]{{1,3}}(?=\$))*+
    {_NUMBER.pattern}(?!\s*[-+*/^×÷]\s*[\d({{]|\s*\\(?:sqrt|pi|cdot|times)|[.):]\s+\w)""",
    re.VERBOSE,
)
_ANSWER_LABEL = re.compile(r"^[\s*_>]*A\s*:|(?:\banswer|答案)[\s*_]*(?:is\b:?|[是为]:?|:)", re.IGNORECASE)
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d{1,18})\s*\}|(\d))\s*(?:\{\s*(\d{1,18})\s*\}|(\d))")


class GSM8K(ComparingORM):
    r"""1.0 if the answer's final number equals the reference's (GSM8K, arXiv 2110.14168), else 0.0.

    The final number is the one that the answer states last: after `####`, after `A:` or `answer is` on the last line,
    in a `\boxed{...}` or in `<answer>...</answer>`; if it states none, the last number of the text. What is in
    `<think>...</think>` or in a box that is never closed is no answer.

    How a number is written makes no difference: `$1,000.00`, `1 000`, `1e3`, `１０００` and `1000 dollars` are equal,
    and so are `2.5`, `2 1/2` and `\frac{5}{2}`. Percent signs and units are ignored. The minus of `48-24` is no sign.

    `Unscored` are candidates whose reference has no number, and those that are right only if the comma of a number such
    as `1,5` is that of a decimal.

    Example:
        >>> GSM8K().score("She makes 9 * 2 = $18 every day.\n#### $18.00", "#### 18")
        1.0
    """

    def score(self, answer: str, reference: str) -> float | Unscored:
        """1.0 for the right number, else 0.0."""
        found, expected = final_number(answer), _number_of_reference(reference)
        if expected is None:
            return Unscored(f"the reference has no number: {reference[:60]!r}")
        if found is None or found == expected:
            return float(found == expected)
        for number in (found, expected):
            if "," in number and _as_decimals(found) == _as_decimals(expected):
                return Unscored(f"{number} may be a decimal, or two numbers")
        return 0.0

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
    part = answer_part(text)
    is_tagged = f"<answer>{part}</answer>" in text
    text = _LATEX_FRACTION.sub(_with_slash, without_powers(plain_numbers(part)))
    box = last_box(text)
    lines = (text[box.end :] if box else text).rstrip().splitlines()
    labels = [*_ANSWER_LABEL.finditer(lines[-1])] if lines else []
    if labels and (number := _stated_number(lines[-1][labels[-1].end() :])):
        return number
    for line in reversed(lines):
        _, marker, statement = line.rpartition("####")
        if marker and (number := _stated_number(statement)):
            return number
    if box:  # a box without a number is an answer without one
        return _stated_number(box.content)
    if is_tagged and (number := _stated_number(text)):
        return number
    numbers = [*_NUMBER.finditer(text)] if not has_open_box(text) else []
    return _canonical(numbers[-1]) if numbers else None


# All candidates of a row, one after the other, are compared with the same reference.
_number_of_reference = lru_cache(maxsize=1)(final_number)


def _stated_number(statement: str) -> str | None:
    """The number that a statement begins with, after its last equals sign."""
    number = _STATED.match(join_groups(statement.rpartition("=")[2]))
    return number and _canonical(number)


def _with_slash(fraction: re.Match[str]) -> str:
    r"""`\frac{1}{2}` as `1/2`; behind a number, with which it is a mixed number, after a space."""
    over, under = fraction[1] or fraction[2], fraction[3] or fraction[4]
    return f"{' ' if fraction.string[fraction.start() - 1 : fraction.start()].isdigit() else ''}{over}/{under}"


def _canonical(number: re.Match[str]) -> str:
    sign = "-" if number["sign"] else ""
    if number["unclear"]:
        return f"{sign}{number['unclear']}"
    if number["over"]:
        value = Fraction(int(number["over"]), int(number["under"])) + int(number["mixed"] or 0)
        exact = Context(prec=100)
        quotient = exact.divide(Decimal(value.numerator), Decimal(value.denominator))
        if exact.flags[Inexact]:
            return f"{sign}{value}"
    else:
        quotient = Decimal(number["digits"].replace(",", ""))
    digits = f"{quotient:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"{sign}{digits}" if digits != "0" else digits


def _as_decimals(number: str) -> str:
    """A canonical number whose comma, if it has one, is that of a decimal."""
    return number.replace(",", ".").rstrip("0").rstrip(".") if "," in number else number
