"""Equations of numbers in running text: found, and checked.

What is read is sure; what is not sure is left unread. `2 * 3 = 6 apples` is read. `half of 10 + 3 = 8` is not, nor is
`5 - 2 = 3 apples + 4 pears`: a word decides there what the equation says.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from swiftplug.builtin.prms.expressions import Number, UnreadableError, Value, evaluate

_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")

# The longest stretch that no word and no punctuation breaks.
_RUN = re.compile(r"(?:[\d+\-*/^()%=≈]|\.(?=\d))(?:[\d+\-*/^()%=≈ \t]|\.(?=\d)|(?<=\d),(?=\d{3}))*")
_TOKEN = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+|[^\s\d]")
_RELATION = re.compile(r"(=+|≈)")
_STOP = re.compile(r"[^\w\s'’]")
_OPERATORS = ("+", "-", "*", "/", "^")
MAX_CHARS = 300  # of one side

# Words that take the number next to them into something longer, or scale it.
_OPERATION = re.compile(
    r"(?:\b(?:(?:half|third|quarter|fourth|fifth|tenth|percent)s? of"
    r"|x|times|by|plus|minus|over|than|half|twice|double|triple|dozen|hundred|thousand|million)|[乘加减以])\s*$",
    re.IGNORECASE,
)
_SCALE = re.compile(
    r"\s*(?:(?:remainder|dozen|hundred|thousand|million|billion|percent|cents?)\b|[余打百千万亿])", re.IGNORECASE
)
_VARIABLE = re.compile(r"[A-Za-z](?![A-Za-z])")
_PERCENTS: tuple[Number, ...] = (Fraction(1, 100), 1)  # what the sign may mean
_FRACTION_LIKE = re.compile(r"\d+/\d+")
_CALCULATES_ON = re.compile(r"[-+*/]\s*[\d(.]")


class _Run(NamedTuple):
    """A stretch of numbers and operators that has an equals sign, and what stands around it.

    Attributes:
        text: The stretch.
        words_before: The words in front of it, up to punctuation or another stretch.
        words_behind: The words behind it, likewise.
        run_before: The stretch in front of those words; empty if punctuation comes first.
        run_behind: The stretch behind those words, likewise.
    """

    text: str
    words_before: str
    words_behind: str
    run_before: str
    run_behind: str


def verdicts(text: str) -> Iterator[bool]:
    """Whether each equation that can be read holds, those of annotations (`<<48/2=24>>`) first.

    Both sides are calculated exactly. A result may be rounded, or cut off, to the digits that it is written with, if it
    has decimals or a percent sign, or stands behind `≈`. A percent sign may mean a hundredth or be a unit. Nothing
    equals what divides by zero.

    Args:
        text: A step of an answer, made `plain`.

    Example:
        >>> list(verdicts("She has 10 / 4 = 2.5 and 3 * 4 = 13 pears: <<3*4=13>>"))
        [False, True, False]
    """
    for annotation in _ANNOTATION.findall(text):
        yield from _of_line(annotation)
    for line in _ANNOTATION.sub("", text).splitlines():
        if "=" in line or "≈" in line:
            yield from _of_line(line)


def _of_line(line: str) -> Iterator[bool]:
    for run in _runs(line):
        texts = _RELATION.split(run.text)
        relations = texts[1::2]
        is_long = [len(text) >= MAX_CHARS for text in texts[::2]]
        texts[0] = "" if _begins_in_words(run) else _behind_open(texts[0])
        texts[-1] = "" if _ends_in_words(run) else _before_closed(texts[-1])
        sides = [[] if long else _TOKEN.findall(text) for text, long in zip(texts[::2], is_long, strict=True)]
        if not any(map(_calculates, sides)):
            continue
        for (left, right), relation in zip(pairwise(sides), relations, strict=True):
            if left and right:
                with suppress(UnreadableError):
                    yield _holds(left, right, approximately=relation == "≈")


def _runs(line: str) -> Iterator[_Run]:
    matches = [*_RUN.finditer(line)]
    for index, match in enumerate(matches):
        if "=" not in match[0] and "≈" not in match[0]:
            continue
        before = matches[index - 1] if index else None
        behind = matches[index + 1] if index + 1 < len(matches) else None
        gaps_before = _STOP.split(line[before.end() if before else 0 : match.start()])
        gaps_behind = _STOP.split(line[match.end() : behind.start() if behind else len(line)])
        yield _Run(
            match[0],
            gaps_before[-1],
            gaps_behind[0],
            before[0].rstrip() if before and len(gaps_before) == 1 else "",
            behind[0] if behind and len(gaps_behind) == 1 else "",
        )


def _begins_in_words(run: _Run) -> bool:
    """Whether the first side of an equation may be but the end of what words say."""
    words = run.words_before.split()
    if run.text[0] in "+-":  # a sign stands close to its number; behind words it may be an operator
        return bool(words) or run.text[1:2].isspace()
    if not words:
        return False
    is_argument = run.words_before[-1].isascii() and not run.words_before[-1].isspace() and run.text[0] != ")"
    is_operand = run.run_before.endswith(_OPERATORS) and any(map(str.isdigit, run.run_before))
    is_share = words == ["of"] and run.run_before  # 20% of 50 + 1, 1/2 of 10 + 3
    is_mixed = words == ["and"] and run.run_before[-1:].isdigit() and _FRACTION_LIKE.match(run.text)
    return bool(is_argument or is_operand or is_share or is_mixed or _OPERATION.search(run.words_before[-20:]))


def _ends_in_words(run: _Run) -> bool:
    """Whether the last side of an equation may be but the beginning of what words say."""
    is_factor = not run.text[-1].isspace() and _VARIABLE.match(run.words_behind)
    is_operand = run.words_behind and _CALCULATES_ON.match(run.run_behind)
    is_mixed = run.words_behind.strip() == "and" and _FRACTION_LIKE.fullmatch(run.run_behind.rstrip())
    return bool(is_factor or is_operand or is_mixed or _SCALE.match(run.words_behind))


def _behind_open(side: str) -> str:
    """A first side without what stands in front of a parenthesis that the whole equation is in: `7 (3 + 4 = 7)`."""
    side = side[-MAX_CHARS:].lstrip(") ")
    while side.count("(") > side.count(")"):
        before, _, side = side.partition("(")
        if before.rstrip().endswith(_OPERATORS):  # no such parenthesis, but one that was not closed
            return ""
    return side


def _before_closed(side: str) -> str:
    """A last side without what stands behind such a parenthesis."""
    side = side[:MAX_CHARS].rstrip("( ")
    while side.count(")") > side.count("("):
        side, _, behind = side.rpartition(")")
        if behind.lstrip().startswith(_OPERATORS):
            return ""
    return side


def _calculates(side: list[str]) -> bool:
    return len([token for token in side if token not in "+-*/^()%"]) > 1


def _holds(left: list[str], right: list[str], approximately: bool) -> bool:
    """Whether two sides are equal.

    Raises:
        UnreadableError: One is no expression.
    """
    has_percent = "%" in left or "%" in right
    for percent in _PERCENTS if has_percent else _PERCENTS[1:]:
        one, other = evaluate(left, percent), evaluate(right, percent)
        if _fits(one, other, left, approximately) or _fits(other, one, right, approximately):
            return True
    return False


def _fits(written: Value, exact: Value, tokens: list[str], approximately: bool) -> bool:
    """Whether one side equals the other, or is it rounded or cut off to the digits written."""
    if written.number is None or exact.number is None:
        return False
    if written.number == exact.number:
        return True
    may_round = approximately or tokens[-1] == "%" or any("." in token for token in tokens)
    if written.unit is None or not may_round:
        return False
    shown, true = Fraction(written.number), Fraction(exact.number)
    is_rounded = abs(true - shown) <= written.unit / 2
    is_cut_off = 0 <= abs(true) - abs(shown) < written.unit and true * shown >= 0
    return is_rounded or is_cut_off
