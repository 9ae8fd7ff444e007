"""Cross entropy that spends less on tokens the model already knows."""

import math

import torch
from torch.nn import functional

from swiftplug.errors import UserError
from swiftplug.plugin.loss import TokenLoss


class Focal(TokenLoss):
    """Focal loss (Lin et al., arXiv 1708.02002) on tokens: `-(1 - p_t)^gamma log p_t`.

    The gradient flows through both factors.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        """Set how fast the loss fades as the target grows likely.

        Args:
            gamma: The focusing exponent, `gamma >= 0`; 0 is cross entropy.

        Raises:
            UserError: `gamma` is outside its range.
        """
        if not 0 <= gamma < math.inf:
            raise UserError(f"focal: gamma is {gamma}, expected a finite number of at least 0")
        self.gamma = gamma

    def token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`(N, V)` logits and `(N,)` targets to `(N,)` losses."""
        nll = functional.cross_entropy(logits, targets, reduction="none")
        # A certain token has 1 - p = 0, where the power's slope is infinite for gamma < 1 and would give 0 * inf = NaN.
        missing = (-torch.expm1(-nll)).clamp(min=torch.finfo(nll.dtype).eps)
        return missing**self.gamma * nll
