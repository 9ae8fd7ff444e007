"""A preference objective: DPO that does not let the chosen answers become less likely."""

import torch
from torch.nn.functional import logsigmoid

from swiftplug.plugin import PreferenceTask, SequenceLogps


class DPOPositive(PreferenceTask):
    """DPO-Positive (Pal et al., arXiv 2402.13228).

    Where two answers are alike, DPO may widen their margin by making both less likely. Here a chosen answer that falls
    below its likelihood under the reference model is penalised.

    Args:
        beta: How strongly the model is held to the reference. Parameters of `__init__` are a plugin's options:
            `--set task.beta=0.3`. The base class logs rewards with this factor.
        penalty: The weight of the penalty, the paper's lambda.
    """

    def __init__(self, beta: float = 0.3, penalty: float = 50.0) -> None:
        self.beta = beta
        self.penalty = penalty

    def pair_loss(self, chosen: SequenceLogps, rejected: SequenceLogps) -> torch.Tensor:
        """One loss for each pair. `ratios` are log-probabilities less those of the reference model."""
        below_reference = torch.relu(-chosen.ratios)
        return -logsigmoid(self.beta * (chosen.ratios - rejected.ratios - self.penalty * below_reference))
