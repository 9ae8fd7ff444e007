"""Cross entropy, the default loss."""

import torch
from torch.nn import functional

from swiftplug.plugin.loss import TokenLoss


class CrossEntropy(TokenLoss):
    """The negative log-likelihood of the target: `-log p_t`, times the token's weight where there is a loss scale."""

    def token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`(N, V)` logits and `(N,)` targets to `(N,)` losses in nats."""
        return functional.cross_entropy(logits, targets, reduction="none")
