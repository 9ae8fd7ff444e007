"""Losses that are a function of one position's logits and target."""

import math

import torch
from torch.nn.functional import cross_entropy

from swiftplug.plugin import TokenLoss, UserError


class CrossEntropy(TokenLoss):
    """Cross entropy, the default: `-log p_t`, the negative log-likelihood of the target."""

    def token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`(N, V)` logits and `(N,)` targets to `(N,)` losses in nats."""
        return cross_entropy(logits, targets, reduction="none")


class DynamicFineTuning(TokenLoss):
    """Dynamic fine-tuning (DFT, arXiv 2508.05629): cross entropy times the target's own probability, detached.

    Seen as a policy gradient, cross entropy divides a token's reward by its probability, so that unlikely tokens pull
    hardest. The factor `p_t`, through which no gradient flows, cancels that division: the gradient with respect to the
    logits is `p_t (p - y)`, where `y` is the one-hot target.
    """

    def token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`(N, V)` logits and `(N,)` targets to `(N,)` losses."""
        nll = cross_entropy(logits, targets, reduction="none")
        return nll * torch.exp(-nll.detach())


class Focal(TokenLoss):
    """Focal loss (Lin et al., arXiv 1708.02002) per token: `-(1 - p_t)^gamma log p_t`.

    The gradient flows through both factors.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        """Set the focusing exponent.

        Args:
            gamma: How fast the loss fades as the target becomes likely, `gamma >= 0`; 0 is cross entropy.

        Raises:
            UserError: `gamma` is negative or not finite.
        """
        if not 0 <= gamma < math.inf:
            raise UserError(f"focal: gamma is {gamma}, expected a finite number of at least 0")
        self.gamma = gamma

    def token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`(N, V)` logits and `(N,)` targets to `(N,)` losses."""
        nll = cross_entropy(logits, targets, reduction="none")
        # A certain token has 1 - p = 0, where the power's slope is infinite for gamma < 1 and would give 0 * inf = NaN.
        missing = (-torch.expm1(-nll)).clamp(min=torch.finfo(nll.dtype).eps)
        return missing**self.gamma * nll


class LabelSmoothing(TokenLoss):
    """Label smoothing (Szegedy et al., arXiv 1512.00567): cross entropy with part of the target spread evenly.

    The target is `1 - epsilon` of the label and `epsilon` of the uniform distribution over the vocabulary of size `V`,
    so the loss is `-(1 - epsilon) log p_t - epsilon / V sum_v log p_v`.
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        """Set the uniform share of the target.

        Args:
            epsilon: The share, `0 <= epsilon < 1`; 0 is cross entropy.

        Raises:
            UserError: `epsilon` is outside its range.
        """
        if not 0 <= epsilon < 1:
            raise UserError(f"label_smoothing: epsilon is {epsilon}, expected a number from 0 up to but not 1")
        self.epsilon = epsilon

    def token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`(N, V)` logits and `(N,)` targets to `(N,)` losses in nats."""
        return cross_entropy(logits, targets, reduction="none", label_smoothing=self.epsilon)
