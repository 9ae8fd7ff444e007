"""The loss scales that pick which contexts train: a leading one of these decides, those after it weigh."""

from typing import Any

from swiftplug.plugin.loss_scale import ContextType, LossScale


class Default(LossScale):
    """Responses weigh 1, all else 0."""


class LastRound(LossScale):
    """The response of the last round weighs 1, all else 0."""

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """The context whole: 1 for a response of the last round, else 0."""
        return [context], [float(is_last_round and context_type is ContextType.RESPONSE)]


class All(LossScale):
    """Everything weighs 1, prompts too."""

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """The context whole, weighing 1."""
        return [context], [1.0]
