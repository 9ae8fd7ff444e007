"""The contract of loss scales: how much each part of a conversation weighs in the loss."""

from enum import StrEnum
from typing import Any


class ContextType(StrEnum):
    """What a stretch of the rendered conversation is."""

    SYSTEM = "system"
    QUERY = "query"
    RESPONSE = "response"
    SUFFIX = "suffix"
    OTHER = "other"


class LossScale:
    """Weighs responses 1 and all else 0; subclass it and override `get_loss_scale` to weigh otherwise.

    A weight of 0 leaves a token out of the loss, 1 is plain, any other float multiplies the token's loss.
    The options of a loss scale are the parameters of its `__init__`.
    """

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Cut a context into parts and weigh each.

        Args:
            context: The text of the segment, as the chat template rendered it.
            context_type: What the segment is. A suffix (the end-of-turn token) is never asked for: it takes the
                weight of the last part of its response.
            is_last_round: Whether the segment belongs to the last round of the conversation.
            **kwargs: `query`, the text of the round's query.

        Returns:
            The parts, which joined are the context again, and a weight for each.
        """
        return [context], [float(context_type is ContextType.RESPONSE)]
