"""Losses that are a sum over tokens, the sort that needs logits at labelled positions only."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IGNORED_LABEL = -100
"""The label of a position that has nothing to predict, as PyTorch's cross entropy and Transformers have it."""


class TokenLoss:
    """A loss that is a function of one position's logits and its target; subclass it and write `token_loss`.

    It meets the contract of a loss on whole logits, like any function would. Being a function of single positions, it
    is also computed in chunks, on labelled positions only, so that the logits of a whole batch never exist at once:
    training does so wherever it knows the form of the model's head. The options are the parameters of `__init__`.

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
        """The weighted sum of the token losses over the number of trained tokens.

        Args:
            outputs: The model's output, with `logits` of `(B, T, V)`.
            labels: `(B, T)` token ids, not shifted, -100 where there is nothing to predict.
            loss_scale: `(B, T)` weights, or None for 1 everywhere.
            num_items_in_batch: The trained tokens of the whole accumulation step; None counts those of this batch.

        Returns:
            A scalar.
        """
        targets = labels[:, 1:]
        trained = targets != IGNORED_LABEL
        losses = self.token_loss(outputs.logits[:, :-1][trained].float(), targets[trained])
        if loss_scale is not None:
            losses = losses * loss_scale[:, 1:][trained]
        return losses.sum() / (trained.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
