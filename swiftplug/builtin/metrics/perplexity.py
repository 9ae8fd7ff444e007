"""Perplexity: the exponential of the mean negative log likelihood of the labelled tokens, each counted once."""

import math

import numpy as np
import torch
from transformers import EvalPrediction


def _preprocess(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Keep one number a position in place of V logits.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, not shifted, -100 where there is nothing to predict.

    Returns:
        `(B, T)` float32: at position t the negative log likelihood of token t + 1 where that is labelled, else 0.
    """
    nll = torch.zeros(labels.shape, dtype=torch.float32, device=logits.device)
    for row, row_logits, row_labels in zip(nll, logits, labels, strict=True):
        positions = (row_labels[1:] != -100).nonzero().squeeze(1)
        # A row at a time, labelled positions only: a float32 copy of all logits would double what they take.
        row[positions] = torch.nn.functional.cross_entropy(
            row_logits[positions].float(), row_labels[positions + 1], reduction="none"
        )
    return nll


def _compute(prediction: EvalPrediction) -> dict[str, float]:
    """The perplexity of a whole set.

    Args:
        prediction: `predictions`, `(N, T)` as `_preprocess` returns it; `label_ids`, `(N, T)`.

    Returns:
        `perplexity`: infinite where the mean overflows, NaN where nothing is labelled.
    """
    labelled = np.asarray(prediction.label_ids)[:, 1:] != -100
    nll = np.asarray(prediction.predictions, dtype=np.float64)[:, :-1][labelled]
    if not nll.size:
        return {"perplexity": math.nan}
    with np.errstate(over="ignore"):
        return {"perplexity": float(np.exp(nll.mean()))}


perplexity = (_compute, _preprocess)
