"""A loss: generalized cross entropy, which wrong labels disturb less."""

import torch
from torch.nn.functional import cross_entropy

from swiftplug.plugin import TokenLoss


class GeneralizedCrossEntropy(TokenLoss):
    """`(1 - p ** q) / q`, where p is the probability of the target (Zhang and Sabuncu, arXiv 1805.07836).

    Args:
        q: Near 0 it is cross entropy, and at 1 it is `1 - p`.
    """

    # The parameters are the plugin's options; they are checked against their annotations.
    def __init__(self, q: float = 0.7) -> None:
        if not 0 < q <= 1:
            raise ValueError(f"q is {q}, expected a number above 0 and at most 1")
        self.q = q

    def token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each of N tokens, `(N,)`, from `(N, V)` float32 logits and `(N,)` token ids.

        Token weights, padding and the mean over the step are the base class's.
        """
        log_p = -cross_entropy(logits, targets, reduction="none")
        return -torch.expm1(self.q * log_p) / self.q
