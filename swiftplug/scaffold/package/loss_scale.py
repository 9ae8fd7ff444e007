"""A loss scale: the last line of an answer counts more."""

from typing import Any

from swiftplug.plugin import ContextType, LossScale


class LastLine(LossScale):
    """Gives the tokens of the last line of each answer another weight in the loss.

    Args:
        weight: The weight of the last line.
    """

    # The parameters are the plugin's options; they are checked against their annotations.
    def __init__(self, weight: float = 2.0) -> None:
        self.weight = weight

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Split an answer into parts, each with its weight. The parts, joined, must be `context` again."""
        if context_type is not ContextType.RESPONSE:
            return super().get_loss_scale(context, context_type, is_last_round, **kwargs)
        before, line_break, last = context.rpartition("\n")
        return [before + line_break, last], [1.0, self.weight]
