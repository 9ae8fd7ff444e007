"""Cross entropy against a target that leaves some probability to every other token."""

import torch
from torch.nn import functional

from swiftplug.errors import UserError
from swiftplug.plugin.loss import TokenLoss


class LabelSmoothing(TokenLoss):
    """Label smoothing (Szegedy et al., arXiv 1512.00567): `-(1 - epsilon) log p_t - epsilon / V sum_v log p_v`.

    The target is `1 - epsilon` of the label and `epsilon` of the uniform distribution over the vocabulary of size `V`.
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        """Set how much of the target is uniform.

        Args:
            epsilon: The uniform share, `0 <= epsilon < 1`; 0 is cross entropy.

        Raises:
            UserError: `epsilon` is outside its range.
        """
        if not 0 <= epsilon < 1:
            raise UserError(f"label_smoothing: epsilon is {epsilon}, expected a number from 0 up to but not 1")
        self.epsilon = epsilon

    def token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`(N, V)` logits and `(N,)` targets to `(N,)` losses in nats."""
        return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=self.epsilon)
