"""The engine of the loss scales that weigh an answer by the words and patterns found in it."""

import re
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

from swiftplug.plugin.loss_scale import ContextType, LossScale

Weight = float | tuple[float, float]
"""The weight of what is found; in a pair, the second is that of what follows, up to the next that has a pair."""


class _Rule(NamedTuple):
    regex: re.Pattern[str]
    weight: float
    following: float | None


class _Match(NamedTuple):
    """A stretch of the text that a rule claims; sorts as matches take precedence."""

    start: int
    negative_end: int
    rule: int


class WeightTable:
    """Words and patterns with their weights.

    The text is read from its start: the first match counts, of several at one place the longest, of equally long ones a
    word before a pattern, then the one named first; reading goes on behind it. What precedes the first match, and what
    stands between matches that say nothing of what follows them, weighs `default`.

    Args:
        words: Literal strings and their weights.
        patterns: Regular expressions and their weights; `^` is the start of the whole text. A match of no characters
            is no match.
        default: The weight of all else.

    Raises:
        re.error: A pattern is not a regular expression.

    Example:
        >>> WeightTable({"Action:": (2.0, 3.0)}).cut("So. Action: go")
        (['So. ', 'Action:', ' go'], [1.0, 2.0, 3.0])
    """

    def __init__(
        self, words: Mapping[str, Weight] = {}, patterns: Mapping[str, Weight] = {}, default: float = 1.0
    ) -> None:
        weight_of = {re.escape(word): weight for word, weight in words.items()}
        self._rules = [
            _Rule(re.compile(regex), *(weight if isinstance(weight, tuple) else (weight, None)))
            for regex, weight in [*weight_of.items(), *patterns.items()]
        ]
        self._default = default

    def cut(self, text: str) -> tuple[list[str], list[float]]:
        """Cut a text into weighted parts.

        Args:
            text: The text of a context.

        Returns:
            The parts, which joined are the text again, and the weight of each. No part is empty, unless the text is:
            then it is the one part, so that the suffix of an empty answer has a weight to take.
        """
        parts: list[str] = []
        weights: list[float] = []
        position, between = 0, self._default
        for start, end, rule in self._matches(text):
            if position < start:
                parts.append(text[position:start])
                weights.append(between)
            parts.append(text[start:end])
            weights.append(rule.weight)
            position = end
            if rule.following is not None:
                between = rule.following
        if position < len(text) or not text:
            parts.append(text[position:])
            weights.append(between)
        return parts, weights

    def _matches(self, text: str) -> Iterator[tuple[int, int, _Rule]]:
        """The matches that count, in order and without overlap."""
        # Each rule has its next match in the heap, and looks again only once that one is passed: one scan a rule.
        heap = [match for rule in range(len(self._rules)) if (match := self._next(rule, text, 0))]
        heapify(heap)
        position = 0
        while heap:
            start, negative_end, rule = heappop(heap)
            if start >= position:
                position = -negative_end
                yield start, position, self._rules[rule]
            if match := self._next(rule, text, position):
                heappush(heap, match)

    def _next(self, rule: int, text: str, position: int) -> _Match | None:
        for match in self._rules[rule].regex.finditer(text, position):
            if match.group():
                return _Match(match.start(), -match.end(), rule)
        return None


class TableLossScale(LossScale):
    """A loss scale whose responses weigh by a table; all else weighs as in the base class. Set `table`."""

    table: WeightTable

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Cut a response by the table."""
        if context_type is ContextType.RESPONSE:
            return self.table.cut(context)
        return super().get_loss_scale(context, context_type, is_last_round, **kwargs)
