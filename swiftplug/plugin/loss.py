"""The contracts of losses and loss scales."""

from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IGNORED_LABEL = -100
"""The label of a position without a target, as in PyTorch's cross entropy and in Transformers."""


class TokenLoss:
    """Base class of losses that are a sum over tokens: subclass it and define `token_loss`.

    An instance is called like any other loss. Because positions are independent, training can also compute it in chunks
    and at labelled positions only, so that the logits of a whole batch never exist at once. It does so for models whose
    output head it knows. The parameters of `__init__` are the options of the plugin.

    Example:
        >>> class CrossEntropy(TokenLoss):
        ...     def token_loss(self, logits, targets):
        ...         return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    """

    def token_loss(self, logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """The unweighted loss of each position.

        Args:
            logits: `(N, V)` float32 logits.
            targets: `(N,)` token ids.

        Returns:
            `(N,)` losses.
        """
        raise NotImplementedError

    def __call__(
        self,
        outputs: Any,
        labels: "torch.Tensor",
        loss_scale: "torch.Tensor | None" = None,
        num_items_in_batch: "torch.Tensor | int | None" = None,
    ) -> "torch.Tensor":
        """The weighted sum of the token losses, divided by the number of trained tokens.

        Args:
            outputs: The model's output, with `logits` of shape `(B, T, V)`.
            labels: `(B, T)` token ids, not shifted; -100 where there is no target.
            loss_scale: `(B, T)` weights; None means 1 everywhere.
            num_items_in_batch: Number of trained tokens in the whole accumulation step; None: in this batch.

        Returns:
            A scalar.
        """
        targets = labels[:, 1:]
        trained = targets != IGNORED_LABEL
        losses = self.token_loss(outputs.logits[:, :-1][trained].float(), targets[trained])
        if loss_scale is not None:
            losses = losses * loss_scale[:, 1:][trained]
        return losses.sum() / (trained.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


class ContextType(StrEnum):
    """The type of a segment of the rendered conversation."""

    RESPONSE = "response"
    SUFFIX = "suffix"
    OTHER = "other"


class LossScale:
    """Weighs responses and suffixes 1 and all else 0. Subclass it and override `get_loss_scale` for other weights.

    A weight of 0 leaves a token out of the loss; any other weight multiplies the token's loss.
    The parameters of `__init__` are the options of the plugin.

    Example:
        >>> class Half(LossScale):
        ...     def get_loss_scale(self, context, context_type, is_last_round, **kwargs):
        ...         return [context], [0.5 if context_type in (ContextType.RESPONSE, ContextType.SUFFIX) else 0.0]
    """

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Split a segment into parts and give each a weight.

        Args:
            context: The text of the segment, as the chat template rendered it.
            context_type: `RESPONSE` for an answer, `SUFFIX` for the end-of-turn token behind it, `OTHER` for all else.
                A suffix whose response has no trained part weighs 0, whatever is returned for it.
            is_last_round: Whether the segment belongs to the last round of the conversation.
            **kwargs: `query`, the text of the user's message in this round; and, if there is such a parameter, `role`,
                the role of the segment's message (empty for what the chat template writes between messages).

        Returns:
            The parts, which joined are exactly `context`, and one finite weight per part, at least 0.
        """
        return [context], [float(context_type in (ContextType.RESPONSE, ContextType.SUFFIX))]
