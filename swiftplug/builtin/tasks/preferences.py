"""Preference objectives on pairs of a better and a worse answer."""

import torch
from torch.nn.functional import logsigmoid

from swiftplug.plugin import PreferenceTask, SequenceLogps


class DPO(PreferenceTask):
    """Direct preference optimisation, Rafailov et al., arXiv 2305.18290."""

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta

    def pair_loss(self, chosen: SequenceLogps, rejected: SequenceLogps) -> torch.Tensor:
        """`-log sigmoid(beta * (log ratio of the chosen - log ratio of the rejected answer))`."""
        return -logsigmoid(self.beta * (chosen.ratios - rejected.ratios))
