"""Metrics of teacher-forced prediction, each token from the true tokens before it; `acc` is one of labels too."""

import math

import numpy as np
import torch
from transformers import EvalPrediction

from swiftplug.plugin import IGNORED_LABEL, UserError


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Compare the argmax token of each position with the label of the next, or the predicted labels with the labels.

    Args:
        prediction: `predictions`, `(N, T)` argmax token ids, not shifted; `label_ids`, `(N, T)`, -100 where there is
            nothing to predict. In task seq_cls both are `(N,)` class numbers, or with several labels `(N, C)`,
            `label_ids` as floats, 1 for a class that applies.

    Returns:
        `token_acc`, the share of labelled tokens that are predicted, and `seq_acc`, the share of rows whose labelled
        tokens all are. A row without a label counts in neither. In task seq_cls `acc`, the share of rows whose class is
        predicted, or with several labels, whose classes are exactly those predicted.

    Raises:
        UserError: The labels are numbers to predict.
    """
    labels = np.asarray(prediction.label_ids)
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.floating):
        raise UserError("metric acc compares classes or tokens, and these labels are numbers; use rmse or pearson")
    if labels.ndim == 1 or np.issubdtype(labels.dtype, np.floating):
        correct = (np.asarray(prediction.predictions) == labels).reshape(len(labels), -1).all(axis=1)
        return {"acc": float(correct.mean())}
    targets = labels[:, 1:]
    labelled = targets != IGNORED_LABEL
    correct = (np.asarray(prediction.predictions)[:, :-1] == targets) & labelled
    rows = labelled.any(axis=1)
    correct_rows = (correct == labelled).all(axis=1) & rows
    return {
        "token_acc": float(correct.sum() / max(labelled.sum(), 1)),
        "seq_acc": float(correct_rows.sum() / max(rows.sum(), 1)),
    }


acc = (_accuracy, None)  # no preprocessing: the argmax ids
"""Accuracy of teacher-forced prediction, per token and sequence (`token_acc`, `seq_acc`), or of labels (`acc`)."""


def _token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Keep one number per position instead of V logits.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, not shifted, -100 where there is nothing to predict.

    Returns:
        `(B, T)` float32: at position t the negative log-likelihood of token t + 1 where that is labelled, else 0.

    Raises:
        UserError: These are no logits of tokens.
    """
    if logits.dim() != 3:
        raise UserError("metric perplexity is of predicted tokens, and these rows have labels; use acc or f1")
    nll = torch.zeros(labels.shape, dtype=torch.float32, device=logits.device)
    for row, row_logits, row_labels in zip(nll, logits, labels, strict=True):
        positions = (row_labels[1:] != IGNORED_LABEL).nonzero().squeeze(1)
        # One row at a time, labelled positions only: a float32 copy of all logits would double their memory.
        row[positions] = torch.nn.functional.cross_entropy(
            row_logits[positions].float(), row_labels[positions + 1], reduction="none"
        )
    return nll


def _perplexity(prediction: EvalPrediction) -> dict[str, float]:
    """The perplexity of the whole set.

    Args:
        prediction: `predictions`, `(N, T)` as `_token_nll` returns it; `label_ids`, `(N, T)`.

    Returns:
        `perplexity`: infinite if it overflows, NaN if nothing is labelled.
    """
    labelled = np.asarray(prediction.label_ids)[:, 1:] != IGNORED_LABEL
    nll = np.asarray(prediction.predictions, dtype=np.float64)[:, :-1][labelled]
    if not nll.size:
        return {"perplexity": math.nan}
    with np.errstate(over="ignore"):
        return {"perplexity": float(np.exp(nll.mean()))}


perplexity = (_perplexity, _token_nll)
"""Perplexity: the exponential of the mean negative log-likelihood over all labelled tokens."""
