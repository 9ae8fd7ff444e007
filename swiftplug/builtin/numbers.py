r"""Numbers as people and models write them: `1 234` with a thin space, `１８`, `1.5e3`, `2½`, `1.234,56`."""

import re
import unicodedata
from decimal import Decimal

_ASCII = (
    {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)}  # the full-width forms of Chinese texts
    | dict.fromkeys(map(ord, "−–‒‐‑﹣"), "-")
    | dict.fromkeys(map(ord, "⁄∕"), "/")
)
_HAS_ASCII = re.compile(f"[{''.join(map(chr, _ASCII))}]+")
# A pattern begins with the characters that a match begins with, as `re` skips to these, and looks behind after them.
_CHINESE_MINUS = re.compile(r"负(?=\d)")
_OTHER_DIGIT = re.compile(r"[^\x00-\x7f](?<=\d)")
_HALF_AND_THE_LIKE = re.compile("[¼-¾⅐-⅞]")
_SUPERSCRIPT = re.compile(r"[⁻⁰¹²³⁴-⁹](?<=[\d)].)[⁻⁰¹²³⁴-⁹]*")
# What separates groups of three digits, except a comma by itself.
_SEPARATOR = re.compile(r"(\d)(?:\{,\}|\\[!,;: ]|[~_'’\u00a0\u2007\u2009\u202f]|(?<=!),|,(?=\\!))+(?=\d{3}(?!\d))")
_DOT_OR_EXPONENT = re.compile(r"\d(?:\.\d{3}|[eE][+-]?\d)")  # what each of the next three has
_EUROPEAN = re.compile(r"(\d(?<![\d.,].)\d{0,2}(?:\.\d{3})+),(\d+)(?![\d]|[.,]\d)")
_DOTTED = re.compile(r"\d(?<![\d.,].)\d{0,2}(?:\.\d{3}){2,}(?!\d|[.,]\d)")
_SPACED = re.compile(r"\s*\d{1,3}(?: \d{3})+(?:\.\d+)?\s*\.?\s*")
_EXPONENT = re.compile(r"\d(?<![\w.,].)\d*(?:\.\d+)?[eE][+-]?\d{1,3}(?!\w|\.\d)")
_POWER_OF_TEN = re.compile(
    r"(?:(?<![\d.,])(\d+(?:\.\d+)?)\s*(?:[×*·x]|\\times|\\cdot)\s*|(?<![\w.,^]))10\s*\^\s*"
    r"(?:\{\s*(-?\d{1,3})\s*\}|(-?\d{1,3})(?![\d.]))"
)


def plain_numbers(text: str) -> str:
    r"""A text whose numbers have ASCII digits and signs, commas or nothing between groups, and no exponent.

    Nothing is decided that is not certain: `1,234` and `1,5` stay as they are.

    Example:
        >>> plain_numbers("１８, −5, 1’234, 1.234,56, 1.5e3, 2½, 10³")
        '18, -5, 1234, 1234.56, 1500, 2\\frac{1}{2}, 10^{3}'
    """
    if not text.isascii():
        text = _HALF_AND_THE_LIKE.sub(lambda it: r"\frac{{{}}}{{{}}}".format(*_parts(it[0])), text)
        text = _SUPERSCRIPT.sub(lambda it: f"^{{{unicodedata.normalize('NFKC', it[0])}}}", text)
        text = _OTHER_DIGIT.sub(lambda digit: str(int(digit[0])), text)
        text = _HAS_ASCII.sub(lambda it: it[0].translate(_ASCII), text)
        text = _CHINESE_MINUS.sub("-", text)
    text = _SEPARATOR.sub(r"\1", text).replace("{,}", ",")
    if not _DOT_OR_EXPONENT.search(text):
        return text
    text = _EUROPEAN.sub(lambda it: f"{it[1].replace('.', '')}.{it[2]}", text)
    text = _DOTTED.sub(lambda it: it[0].replace(".", ""), text)
    return _EXPONENT.sub(lambda it: f"{Decimal(it[0]):f}", text)


def without_powers(text: str) -> str:
    """A text of plain numbers with its powers of ten written out: `1.5 × 10^3` as `1500`."""
    if "^" not in text:
        return text
    return _POWER_OF_TEN.sub(lambda it: f"{Decimal(f'{it[1] or 1}e{it[2] or it[3]}'):f}", text)


def join_groups(statement: str) -> str:
    """A statement that is one number with spaces between its groups (`1 234`) without them; any other as it is."""
    return statement.replace(" ", "") if _SPACED.fullmatch(statement) else statement


def _parts(fraction: str) -> list[str]:
    """The numerator and the denominator of a character such as `½`."""
    return unicodedata.normalize("NFKC", fraction).split("⁄")
