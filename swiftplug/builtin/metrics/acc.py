"""Accuracy of teacher-forced prediction, by token and by sequence."""

import numpy as np
from transformers import EvalPrediction


def _compute(prediction: EvalPrediction) -> dict[str, float]:
    """Compare the argmax token of each position with the label of the next.

    Args:
        prediction: `predictions`, `(N, T)` argmax token ids, not shifted; `label_ids`, `(N, T)`, -100 where there is
            nothing to predict.

    Returns:
        `token_acc`, the share of labelled tokens that are predicted, and `seq_acc`, the share of rows whose labelled
        tokens all are. A row without a label counts in neither.
    """
    targets = np.asarray(prediction.label_ids)[:, 1:]
    labelled = targets != -100
    right = (np.asarray(prediction.predictions)[:, :-1] == targets) & labelled
    rows = labelled.any(axis=1)
    whole = (right == labelled).all(axis=1) & rows
    return {
        "token_acc": float(right.sum() / max(labelled.sum(), 1)),
        "seq_acc": float(whole.sum() / max(rows.sum(), 1)),
    }


# None: the argmax ids, which the trainer takes by itself.
acc = (_compute, None)
