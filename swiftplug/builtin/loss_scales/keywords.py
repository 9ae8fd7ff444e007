"""Weights for parts of a response, by the words and patterns found in it."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from swiftplug.builtin.patterns import compile_pattern
from swiftplug.plugin import ContextType, LossScale, UserError

Weight = float | tuple[float, float]
"""The weight of a match. In a pair, the second is the weight of the text after it, up to the next match with a pair."""


class _Rule(NamedTuple):
    regex: re.Pattern[str]
    weight: float
    following: float | None


class WeightTable:
    """Words and patterns with their weights.

    Matches are found from left to right and do not overlap. If several begin at one place, the longest counts; if they
    are equally long, a word before a pattern, then the one given first. Text before the first match, and after matches
    without a weight for the text after them, gets `default`.

    Args:
        words: Literal strings and their weights.
        patterns: Regular expressions and their weights; `^` is the start of the whole text. Empty matches are ignored.
        default: The weight of everything else.

    Raises:
        re.error: A pattern is not a regular expression.

    Example:
        >>> WeightTable({"Action:": (2.0, 3.0)}).split("So. Action: go")
        (['So. ', 'Action:', ' go'], [1.0, 2.0, 3.0])
    """

    def __init__(
        self, words: Mapping[str, Weight] = {}, patterns: Mapping[str, Weight] = {}, default: float = 1.0
    ) -> None:
        escaped = {re.escape(word): weight for word, weight in words.items()}
        self._rules = [
            _Rule(re.compile(regex), *(weight if isinstance(weight, tuple) else (weight, None)))
            for regex, weight in [*escaped.items(), *patterns.items()]
        ]
        self._default = default

    def split(self, text: str) -> tuple[list[str], list[float]]:
        """Split a text into parts, and give each a weight.

        Args:
            text: The text of a context.

        Returns:
            The parts, which joined are the text again, and the weight of each. No part is empty unless the text is:
            then it is the only part, so that the suffix of an empty answer trains.
        """
        parts: list[str] = []
        weights: list[float] = []
        position, weight_between = 0, self._default
        for match, rule in self._matches(text):
            if position < match.start():
                parts.append(text[position : match.start()])
                weights.append(weight_between)
            parts.append(match[0])
            weights.append(rule.weight)
            position = match.end()
            if rule.following is not None:
                weight_between = rule.following
        if position < len(text) or not text:
            parts.append(text[position:])
            weights.append(weight_between)
        return parts, weights

    def _matches(self, text: str) -> Iterator[tuple[re.Match[str], _Rule]]:
        """The matches that count, in order and without overlap."""
        # A rule searches again only after its next match is passed: each scans the text once.
        upcoming = [(match, rule) for rule in self._rules if (match := _search(rule.regex, text, 0))]
        while upcoming:
            first, first_rule = min(upcoming, key=lambda pair: (pair[0].start(), -pair[0].end()))
            yield first, first_rule
            end = first.end()
            upcoming = [
                (later, rule)
                for match, rule in upcoming
                if (later := match if match.start() >= end else _search(rule.regex, text, end))
            ]


def _search(regex: re.Pattern[str], text: str, position: int) -> re.Match[str] | None:
    """The next match that is not empty."""
    return next((match for match in regex.finditer(text, position) if match[0]), None)


class TableLossScale(LossScale):
    """Weighs responses by a table, everything else as the base class does. Subclasses set `table`."""

    table: WeightTable

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Split a response by the table; see `LossScale.get_loss_scale`."""
        if context_type is ContextType.RESPONSE:
            return self.table.split(context)
        return super().get_loss_scale(context, context_type, is_last_round, **kwargs)


class Keywords(TableLossScale):
    r"""Weighs responses by a table of words and regular expressions, given as options.

    Example:
        In a config: digits weigh 2, `Answer:` weighs 2 and the text after it 3.

        ```yaml
        loss_scale:
          name: keywords
          words: {学习: 1.0, 好: 0.5, 数学: 2.0, 是: 0.5, 重要: 2.0, 的: 0.1, "Answer:": [2, 3]}
          patterns: {'\d+': 2.0}
          default: 1.0
        ```
    """

    def __init__(
        self, words: dict[str, Weight] | None = None, patterns: dict[str, Weight] | None = None, default: float = 1.0
    ) -> None:
        """Build the table.

        Args:
            words: Literal strings, each with its weight or with a pair: its own weight, and that of the text after it
                up to the next word or pattern that has a pair. Where several match, the longest counts.
            patterns: Regular expressions (Python's `re`), with weights in the same form.
            default: The weight of text that neither matches nor follows a match with a pair.

        Raises:
            UserError: There is nothing to look for, a word is empty, a pattern is not a regular expression, or a
                weight is negative or not finite.
        """
        words, patterns = words or {}, patterns or {}
        if not words and not patterns:
            raise UserError("keywords: nothing to look for; expected 'words' or 'patterns', a table of weights")
        if "" in words:
            raise UserError("keywords: words has an empty word; expected at least one character")
        for pattern in patterns:
            compile_pattern(pattern, "keywords: pattern")
        for key, table in (("words", words), ("patterns", patterns)):
            for word, weight in table.items():
                _check_weights(f"{key}.{word}", weight if isinstance(weight, Iterable) else (weight,))
        _check_weights("default", (default,))
        self.table = WeightTable(words, patterns, default)


def _check_weights(where: str, weights: Iterable[float]) -> None:
    for weight in weights:
        if not 0 <= weight < math.inf:
            raise UserError(f"keywords: {where} is {weight}, expected a finite weight of at least 0")
