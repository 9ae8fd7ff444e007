"""Equations of numbers in running text: find, calculate and compare them.

Only what is certain is read. `2 * 3 = 6 apples` is read. `half of 10 + 3 = 8` is not, nor is
`5 - 2 = 3 apples + 4 pears`: there, words decide what the equation means.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

# Limits, so that no text takes long.
MAX_CHARS = 300  # of one side of an equation
MAX_BITS = 512  # of a numerator or a denominator
MAX_EXPONENT = 64

_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")
# A stretch of numbers and signs without words or punctuation.
_STRETCH = re.compile(r"((?:[\d+\-*/^()%=≈]|\.(?=\d))(?:[\d+\-*/^()%=≈ \t]|\.(?=\d)|(?<=\d),(?=\d{3}))*)")
_RELATION = re.compile(r"(=+|≈)")
_PUNCTUATION = re.compile(r"[^\w\s'’+\-*/^()%=≈.,]|\.(?!\d)|(?<!\d),|,(?!\d{3})")
_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+")
_TURNED_AROUND = str.maketrans("()", ")(")
_PERCENTS = (Fraction(1, 100), Fraction(1))  # what a percent sign may mean

_WORDS = r"(?:[^\W\d]|[\s'’])+"
# Text before the first side that makes it part of a longer expression.
_JOINS_FIRST_SIDE = re.compile(
    rf"""
    \d.*[-+*/^]{_WORDS}$                                             # 3 + what 4 + 1 = 5
    | [\d+\-*/^()%=≈]\s*of\s*$                                       # 20% of 50 + 1 = 11
    | (?<![^\W\d])(?:(?:half|third|quarter|fourth|fifth|tenth|percent)s?[ ]of|x|times|by|plus|minus|over|than|half|twice
        |double|triple|dozen|hundred|thousand|million)\s*$           # twice 10 + 3 = 23
    | [乘加减以]\s*$
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Text after the last side that makes it part of a longer expression, or scales it.
_JOINS_LAST_SIDE = re.compile(
    rf"""
    [A-Z](?![A-Z])                                                   # 26 = 5 + 3x
    | \s*(?:(?:remainder|dozen|hundred|thousand|million|billion|percent|cents?)(?![^\W\d])|[余打百千万亿])
    | \s*and\s*\d+/\d+\s*$                                           # 4 / 3 = 1 and 1/3
    | {_WORDS}[-+*/]\s*[\d(.]                                        # 5 - 2 = 3 apples + 4 pears
    """,
    re.IGNORECASE | re.VERBOSE,
)


def check_equations(text: str) -> Iterator[bool]:
    """Whether each equation in a text holds, those of annotations (`<<48/2=24>>`) first.

    Both sides are calculated exactly. A result may be rounded or cut off to the digits that it is written with, if it
    has decimals or a percent sign, or follows `≈`. A percent sign may mean a hundredth or be a unit. Nothing equals a
    division by zero.

    Args:
        text: A step of an answer, after `normalize`.

    Example:
        >>> list(check_equations("She has 10 / 4 = 2.5 and 3 * 4 = 13 pears: <<3*4=13>>"))
        [False, True, False]
    """
    for line in [*_ANNOTATION.findall(text), *_ANNOTATION.sub("", text).splitlines()]:
        # Words at even positions, stretches of numbers and operators at odd ones.
        parts = _STRETCH.split(line) if "=" in line or "≈" in line else []
        for index in range(1, len(parts), 2):
            before = "".join(parts[max(index - 2, 0) : index])[-MAX_CHARS:]
            after = "".join(parts[index + 1 : index + 3])
            yield from _check_chain(parts[index], _PUNCTUATION.split(before)[-1], _PUNCTUATION.split(after)[0])


def _check_chain(stretch: str, before: str, after: str) -> Iterator[bool]:
    """Whether each equation of `a = b = c` holds; before and after it are words and the next such stretch."""
    first, *others = _RELATION.split(stretch)
    sides, relations = [first, *others[1::2]], others[::2]
    sides = [side if len(side) < MAX_CHARS else "" for side in sides]
    sides[0] = "" if _is_first_side_joined(stretch, before) else _drop_unclosed(sides[0])
    space = stretch[len(stretch.rstrip()) :]
    last = _mirrored(_drop_unclosed(_mirrored(sides[-1])))
    sides[-1] = "" if _JOINS_LAST_SIDE.match(space + after) else last
    if any(len(_NUMBER.findall(side)) > 1 for side in sides):
        for (left, right), relation in zip(pairwise(map(str.strip, sides)), relations, strict=True):
            if left and right:
                try:
                    holds = any(_holds(left, right, relation == "≈", percent) for percent in _PERCENTS)
                except ZeroDivisionError:
                    holds = False
                except (SyntaxError, OverflowError):
                    continue
                yield holds


def _is_first_side_joined(stretch: str, before: str) -> bool:
    """Whether the first side may be only the end of a longer expression, partly in words."""
    has_words = re.search(r"(?:[^\W\d]|['’])\s*$", before)
    if stretch[0] in "+-":  # a sign stands close to its number; after words it may be an operator
        return bool(has_words) or stretch[1:2].isspace()
    is_argument = stretch[0] != ")" and re.search(r"[A-Za-z_']$", before)
    is_mixed_number = re.match(r"\d+/\d+", stretch) and re.search(r"\d\s*and\s*$", before)
    return bool(has_words and (is_argument or is_mixed_number or _JOINS_FIRST_SIDE.search(before)))


def _drop_unclosed(side: str) -> str:
    """A first side without the text before a parenthesis around the whole equation: `7 (3 + 4 = 7)`."""
    side = side.lstrip(") ")
    while side.count("(") > side.count(")"):
        before, _, side = side.partition("(")
        if before.rstrip().endswith(("+", "-", "*", "/", "^")):  # not such a parenthesis, but one never closed
            return ""
    return side


def _mirrored(text: str) -> str:
    """A text from right to left, with parentheses turned around."""
    return text[::-1].translate(_TURNED_AROUND)


def _holds(left: str, right: str, approximately: bool, percent: Fraction) -> bool:
    """Whether two sides are equal, or one is the other rounded or cut off, for a meaning of the percent sign."""
    left_value, right_value = calculate(left, percent), calculate(right, percent)
    if left_value == right_value:
        return True
    for written, value, exact in ((left, left_value, right_value), (right, right_value, left_value)):
        numbers = _NUMBER.findall(written)
        is_percent = written.endswith("%")
        if len(numbers) == 1 and (approximately or is_percent or "." in written):
            unit = Fraction(1, 10 ** len(numbers[0].partition(".")[2])) * (percent if is_percent else 1)
            is_cut_off = 0 <= abs(exact) - abs(value) < unit and exact * value >= 0
            if abs(exact - value) <= unit / 2 or is_cut_off:
                return True
    return False


_IMPLICIT_PRODUCT = re.compile(r"([\d)%])\s*\(")
# Two signs in a row, a power of a power, a percentage of percent.
_AMBIGUOUS = re.compile(r"(?:^|[-+*/^(])\s*[-+]\s*[-+]|\^[^-+*/(]*\^|%\s*%")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@lru_cache(1024)  # most annotations repeat an equation of the text
def calculate(expression: str, percent: Fraction) -> Fraction:
    """Calculate an expression of `+ - * / ^`, parentheses, `2(3 + 4)`, and percent signs.

    Args:
        expression: Numbers may be written `1,000` and `.5`.
        percent: What a percent sign multiplies by.

    Raises:
        SyntaxError: The text is not one expression.
        OverflowError: A number becomes too long.
        ZeroDivisionError: The expression divides by zero.

    Example:
        >>> calculate("10 / (4 - 1) + 50%", percent=Fraction(1, 100))
        Fraction(23, 6)
    """
    if _AMBIGUOUS.search(expression):
        raise SyntaxError
    source = _IMPLICIT_PRODUCT.sub(r"\1*(", expression)
    source = _NUMBER.sub(lambda number: number[0].replace(",", "").lstrip("0") or "0", source)
    # Python's grammar does the rest. A percent sign becomes an attribute, because nothing binds more tightly.
    source = source.replace("^", "**").replace("%", " .percent ")

    def value_of(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(integer)):
                value = Fraction(integer)
            case ast.Constant():  # the digits as written: a float is not exact
                value = Fraction(source[node.col_offset : node.end_col_offset])
            case ast.Attribute(value=number):
                value = value_of(number) * percent
            case ast.UnaryOp(op=sign, operand=number):
                value = -value_of(number) if isinstance(sign, ast.USub) else value_of(number)
            case ast.BinOp(op=ast.Pow(), left=base, right=power):
                exponent = value_of(power)
                if exponent.denominator != 1 or not 0 <= exponent <= MAX_EXPONENT:
                    raise OverflowError
                value = value_of(base) ** exponent.numerator
            case ast.BinOp(op=operation, left=left, right=right) if type(operation) in _OPERATIONS:
                value = _OPERATIONS[type(operation)](value_of(left), value_of(right))
            case _:
                raise SyntaxError
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise OverflowError
        return value

    return value_of(ast.parse(source, mode="eval").body)
