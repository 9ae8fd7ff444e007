"""A loss scale whose table the user writes."""

import math
import re
from collections.abc import Iterable

from swiftplug.builtin.loss_scales.table import TableLossScale, Weight, WeightTable
from swiftplug.errors import UserError


class Keywords(TableLossScale):
    r"""Weighs responses by a table of words and patterns.

    Example:
        A config's `loss_scale`, in which digits weigh 2, `Answer:` weighs 2 and what follows it 3:

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
            words: Literal strings, each with its weight, or with a pair: its own weight, and that of what follows it
                up to the next word or pattern that has a pair. The longest wins where several match.
            patterns: Regular expressions (of Python's `re`), likewise.
            default: The weight of what is neither found nor follows what was found with a pair.

        Raises:
            UserError: There is nothing to look for, a word is empty, a pattern is not a regular expression, or a
                weight is not finite.
        """
        words, patterns = words or {}, patterns or {}
        if not words and not patterns:
            raise UserError("keywords: nothing to look for; expected 'words' or 'patterns', a table of weights")
        if "" in words:
            raise UserError("keywords: words has an empty word; expected at least one character")
        for pattern in patterns:
            _check_pattern(pattern)
        for key, table in (("words", words), ("patterns", patterns)):
            for word, weight in table.items():
                _check_finite(f"{key}.{word}", weight if isinstance(weight, Iterable) else (weight,))
        _check_finite("default", (default,))
        self.table = WeightTable(words, patterns, default)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"keywords: patterns has {pattern!r}, which is not a regular expression: {error}") from None


def _check_finite(where: str, weights: Iterable[float]) -> None:
    for weight in weights:
        if not math.isfinite(weight):
            raise UserError(f"keywords: {where} is {weight}, expected a finite weight")
