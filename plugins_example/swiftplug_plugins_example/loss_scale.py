"""A loss scale: numbers count more than the words around them."""

import re
from typing import Any

from swiftplug.plugin import ContextType, LossScale


class Digits(LossScale):
    """Gives every number in a response the weight `weight`, and everything else its usual weight.

    Args:
        weight: The weight of a digit. Parameters of `__init__` are a plugin's options: `--set loss_scale.weight=3`.
    """

    def __init__(self, weight: float = 2.0) -> None:
        self.weight = weight

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Split a response at its numbers. The parts, joined, must be the context again."""
        if context_type is not ContextType.RESPONSE:
            return super().get_loss_scale(context, context_type, is_last_round, **kwargs)
        parts = re.findall(r"\d+|\D+", context) or [context]
        return parts, [self.weight if part.isdecimal() else 1.0 for part in parts]
