"""Dynamic fine-tuning: cross entropy that each token weighs by its own probability."""

import torch
from torch.nn import functional

from swiftplug.plugin.loss import TokenLoss


class DynamicFineTuning(TokenLoss):
    """Dynamic fine-tuning (DFT, arXiv 2508.05629): `-sg(p_t) log p_t`, where no gradient flows through `sg`.

    Seen as a policy gradient, cross entropy divides a token's reward by its probability, so that unlikely tokens pull
    hardest. The factor `p_t` takes that division back: the gradient with respect to the logits is `p_t (p - y)`, `y`
    being the one-hot target.
    """

    def token_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`(N, V)` logits and `(N,)` targets to `(N,)` losses."""
        nll = functional.cross_entropy(logits, targets, reduction="none")
        return nll * torch.exp(-nll.detach())
