"""A metric: how often the right token is among the k most likely."""

from collections.abc import Callable

import numpy as np
import torch
from transformers import EvalPrediction

Compute = Callable[[EvalPrediction], dict[str, float]]
Preprocess = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# A metric is a pair of functions. This one has an option, so it is a function that returns the pair; without one,
# a plain tuple `topk = (compute, preprocess)` would do.
def topk(*, k: int = 5) -> tuple[Compute, Preprocess]:
    """Top-k accuracy over the trained tokens.

    Args:
        k: Number of most likely tokens that count as right.
    """

    def preprocess(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Reduce `(B, T, V)` logits to `(B, T)` ranks, batch by batch: an evaluation never holds all the logits."""
        targets = labels[:, 1:].clamp(min=0)  # -100 is no token id; compute leaves those positions out
        right = logits[:, :-1].gather(-1, targets[..., None])
        ranks = (logits[:, :-1] > right).sum(-1)
        return torch.nn.functional.pad(ranks, (0, 1))  # as long as the labels, which Trainer gathers the same way

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        """The share of trained tokens whose rank is below k. Trainer puts `eval_` in front of the name."""
        labels = np.asarray(prediction.label_ids)[:, 1:]
        ranks = np.asarray(prediction.predictions)[:, :-1][labels != -100]
        return {f"top{k}_acc": float(np.mean(ranks < k))}

    return compute, preprocess
