"""A task: direct preference optimisation that does not favour long answers."""

import torch
from torch.nn.functional import logsigmoid

from swiftplug.plugin import PreferenceTask, SequenceLogps


class LengthPenalizedDPO(PreferenceTask):
    """DPO with a margin for each token by which the chosen answer is longer (Park et al., arXiv 2403.19159).

    A `PreferenceTask` trains on pairs of a better and a worse answer. For other rows subclass `swiftplug.plugin.Task`.

    Args:
        beta: How strongly the model is held to the reference model.
        alpha: The margin for a token; 0 is plain DPO.
    """

    # The parameters are the plugin's options; they are checked against their annotations.
    def __init__(self, beta: float = 0.1, alpha: float = 0.01) -> None:
        self.beta = beta
        self.alpha = alpha

    def pair_loss(self, chosen: SequenceLogps, rejected: SequenceLogps) -> torch.Tensor:
        """The loss of each of B pairs, `(B,)`. `ratios` are log-probabilities less those of the reference model."""
        longer = chosen.lengths - rejected.lengths
        return -logsigmoid(self.beta * (chosen.ratios - rejected.ratios) - self.alpha * longer)
