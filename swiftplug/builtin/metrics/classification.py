"""Metrics of predicted classes and numbers, for task seq_cls, by scikit-learn."""

import numpy as np
from sklearn.metrics import f1_score, matthews_corrcoef, root_mean_squared_error
from transformers import EvalPrediction

from swiftplug.plugin import UserError


def _classes(name: str, prediction: EvalPrediction, several: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The right and the predicted classes, as scikit-learn takes them."""
    labels, predictions = np.asarray(prediction.label_ids), np.asarray(prediction.predictions)
    has_several = labels.ndim == 2 and np.issubdtype(labels.dtype, np.floating)
    if not (has_several and several) and not (labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)):
        what = "one class" if not several else "classes"
        raise UserError(f"metric {name} compares {what} of rows, and these rows have none; it is for task seq_cls")
    return labels, predictions


def _numbers(name: str, prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray]:
    """The right and the predicted numbers."""
    labels = np.asarray(prediction.label_ids)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.floating):
        raise UserError(f"metric {name} compares numbers, and these rows have none; it is for regression in seq_cls")
    return labels.astype(np.float64), np.asarray(prediction.predictions, dtype=np.float64)


def _f1(prediction: EvalPrediction) -> dict[str, float]:
    """The macro F1 score: the mean over classes of the harmonic mean of precision and recall.

    Args:
        prediction: `predictions` and `label_ids`, `(N,)` class numbers; with several labels `(N, C)`, 1 where a class
            applies.

    Returns:
        `f1`, from 0 to 1. The classes are those that occur, as label or as prediction; with several labels all, and one
        that does not occur at all scores 0 (scikit-learn's `zero_division=0`).
    """
    labels, predictions = _classes("f1", prediction)
    return {"f1": float(f1_score(labels, predictions, average="macro", zero_division=0))}


def _mcc(prediction: EvalPrediction) -> dict[str, float]:
    """Matthews' correlation coefficient of one class per row, for any number of classes (Gorodkin's R_K).

    Args:
        prediction: `predictions` and `label_ids`, `(N,)` class numbers.

    Returns:
        `mcc`, from -1 to 1; 0 where only one class is predicted.
    """
    labels, predictions = _classes("mcc", prediction, several=False)
    return {"mcc": float(matthews_corrcoef(labels, predictions))}


def _rmse(prediction: EvalPrediction) -> dict[str, float]:
    """The root of the mean squared error, `rmse`, in the labels' unit; `predictions` and `label_ids` are `(N,)`."""
    labels, predictions = _numbers("rmse", prediction)
    return {"rmse": float(root_mean_squared_error(labels, predictions))}


def _pearson(prediction: EvalPrediction) -> dict[str, float]:
    """Pearson's correlation of labels and predictions, `pearson`; NaN if either is constant or there is one row."""
    labels, predictions = _numbers("pearson", prediction)
    if len(labels) < 2:
        return {"pearson": float("nan")}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"pearson": float(np.corrcoef(labels, predictions)[0, 1])}


f1 = (_f1, None)
"""Macro F1 score of predicted classes."""

mcc = (_mcc, None)
"""Matthews' correlation coefficient of predicted classes."""

rmse = (_rmse, None)
"""Root mean squared error of predicted numbers."""

pearson = (_pearson, None)
"""Pearson's correlation of predicted numbers and labels."""
