"""Sequence classification: texts or conversations with a class, several classes, or a number."""

from collections.abc import Iterable, Sequence
from typing import Literal

from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from swiftplug.plugin import Batch, Rows, Task, TaskLoss, TaskModel, UserError


class SequenceClassification(Task):
    """Trains a head to give the label of a text or conversation.

    The loss of a row is that of Transformers' models for sequence classification: cross entropy for one class, the mean
    over all classes of the binary cross entropy for several, and the squared error for a number.
    """

    rows = Rows.LABELLED
    kinds = frozenset({"metric"})
    head = "sequence"

    def __init__(
        self,
        problem: Literal["single", "multi", "regression"] | None = None,
        labels: list[str] | list[int] | None = None,
    ) -> None:
        """Say what the labels are where rows cannot tell.

        Args:
            problem: One class, several, or a number to predict; None: what the labels look like. `regression` takes
                whole numbers, such as ratings, for numbers and not for classes.
            labels: The classes in the order of their numbers; None: those of the training rows.
        """
        if labels is not None and (len(labels) < 2 or len({*labels}) < len(labels)):
            raise UserError(f"task.labels: found {labels}, expected two classes or more, each once")
        self.problem = problem
        self.labels: Sequence[str | int] | None = labels

    def log_names(self) -> Iterable[str]:
        """Nothing but the loss."""
        return ()

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """The sum of the rows' losses."""
        logits, label = model.outputs(batch).logits.float(), batch["label"]
        if not label.is_floating_point():
            loss = cross_entropy(logits, label, reduction="sum")
        elif label.dim() == 1:
            loss = mse_loss(logits.squeeze(-1), label, reduction="sum")
        else:
            loss = binary_cross_entropy_with_logits(logits, label, reduction="none").mean(dim=-1).sum()
        return TaskLoss({"rows": loss})
