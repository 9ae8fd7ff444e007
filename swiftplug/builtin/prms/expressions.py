"""Arithmetic expressions as exact fractions, within limits that no text can make slow."""

from fractions import Fraction
from typing import NamedTuple

MAX_BITS = 512  # of a numerator or a denominator
MAX_DIGITS = 100  # of a number, as written
MAX_EXPONENT = 64
MAX_DEPTH = 30

Number = int | Fraction


class UnreadableError(Exception):
    """What is not one whole expression, or is beyond the limits."""


class Value(NamedTuple):
    """What an expression comes to.

    Attributes:
        number: The number; None if it divides by zero.
        unit: For a number as it is written, one in its last digit; None for a calculation.
    """

    number: Number | None
    unit: Number | None


def evaluate(tokens: list[str], percent: Number) -> Value:
    """Evaluate `+ - * / ^`, parentheses, `2(3 + 4)`, and a sign in front of a factor.

    Args:
        tokens: Operators, parentheses, percent signs, and numbers as written: `1,000`, `.5`.
        percent: What a percent sign multiplies by: a hundredth, or 1 where it is no more than a unit.

    Raises:
        UnreadableError: The tokens are not one expression, or a number in it grows too long.

    Example:
        >>> evaluate(["10", "/", "(", "4", "-", "1", ")"], percent=1)
        Value(number=Fraction(10, 3), unit=None)
        >>> evaluate(["-", "3.50"], percent=1)
        Value(number=Fraction(-7, 2), unit=Fraction(1, 100))
    """
    try:
        number = _Parser(tokens, percent).whole()
    except ZeroDivisionError:
        return Value(None, None)
    written = [token for token in tokens if token not in "+-%()"]
    if len(written) > 1:
        return Value(number, None)
    places = len(written[0].partition(".")[2])
    unit: Number = Fraction(1, 10**places) if places else 1
    return Value(number, unit * percent if tokens[-1] == "%" else unit)


class _Parser:
    """Recursive descent, one method a level of precedence."""

    def __init__(self, tokens: list[str], percent: Number) -> None:
        self.tokens = [*tokens, ""]
        self.percent = percent
        self.position = 0
        self.depth = 0

    def whole(self) -> Number:
        number = self._sum()
        if self.tokens[self.position]:
            raise UnreadableError
        return number

    def _sum(self) -> Number:
        number = self._product()
        while operator := self._take("+-"):
            term = self._product()
            number = _limited(number + term if operator == "+" else number - term)
        return number

    def _product(self) -> Number:
        number = self._signed()
        while True:
            if operator := self._take("*/"):
                factor = self._signed()
            elif self.tokens[self.position] == "(":
                operator, factor = "*", self._power()
            else:
                return number
            number = _limited(number * factor if operator == "*" else _quotient(number, factor))

    def _signed(self) -> Number:
        return -self._power() if self._take("+-") == "-" else self._power()

    def _power(self) -> Number:
        base = self._atom()
        if not self._take("^"):
            return base
        exponent = self._atom()
        if exponent.denominator != 1 or not 0 <= exponent <= MAX_EXPONENT:
            raise UnreadableError
        return _limited(base**exponent.numerator)

    def _atom(self) -> Number:
        number: Number
        if self._take("("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise UnreadableError
            number = self._sum()
            if not self._take(")"):
                raise UnreadableError
            self.depth -= 1
        else:
            number = _read(self.tokens[self.position])
            self.position += 1
        return number * self.percent if self._take("%") else number

    def _take(self, wanted: str) -> str:
        """The next token if it is one of the wanted characters, and the way past it; else an empty text."""
        token = self.tokens[self.position]
        if not token or token not in wanted:
            return ""
        self.position += 1
        return token


def _read(token: str) -> Number:
    if not token[:1].isdigit() and token[:1] != ".":
        raise UnreadableError
    if len(token) > MAX_DIGITS:
        raise UnreadableError
    digits = token.replace(",", "")
    return Fraction(digits) if "." in digits else int(digits)


def _quotient(number: Number, divisor: Number) -> Number:
    quotient = Fraction(number, divisor)
    return quotient.numerator if quotient.denominator == 1 else quotient


def _limited(number: Number) -> Number:
    if number.numerator.bit_length() > MAX_BITS or number.denominator.bit_length() > MAX_BITS:
        raise UnreadableError
    return number
