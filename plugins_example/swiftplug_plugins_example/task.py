"""A task: learn good answers, and unlearn bad ones."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from swiftplug.plugin import IGNORED_LABEL, Batch, Rows, Task, TaskLoss, TaskModel, row_count


class Unlikelihood(Task):
    """Unlikelihood training (Welleck et al., arXiv 1908.04319), with bad answers as the negative examples.

    A token of a good answer costs `-log p`, one of a bad answer `-log(1 - p)`.

    Args:
        alpha: The weight of the bad answers. Parameters of `__init__` are a plugin's options: `--set task.alpha=0.5`.
    """

    rows = Rows.RATED  # an answer to each prompt, and whether it is good
    kinds = frozenset({"loss_scale"})  # which other kinds act here, beyond those that act in every task

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def counts(self, batch: Batch) -> dict[str, Any]:
        """What the sums of `loss` are divided by, over a whole accumulation step and all processes."""
        return {"tokens": (_answers(batch)["labels"][:, 1:] != IGNORED_LABEL).sum()}

    def log_names(self) -> Iterable[str]:
        """What `loss` logs: training.metric_for_best_model=eval_logps/good chooses the best checkpoint by it."""
        return "logps/good", "logps/bad"

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """The sum of the losses, and what is logged: the mean of each tensor since the last log."""
        answers = _answers(batch)
        targets = answers["labels"][:, 1:]  # the logits at one position predict the token at the next
        trained = targets != IGNORED_LABEL
        logits = model.outputs(answers).logits[:, :-1][trained].float()
        logps = -cross_entropy(logits, targets[trained], reduction="none")
        is_good = answers["rating"][:, None].expand_as(trained)[trained]
        unlikely = torch.log(-torch.expm1(logps.clamp(max=-1e-6)))  # log(1 - p); a p of 1 has no finite one
        losses = torch.where(is_good, -logps, -self.alpha * unlikely)
        logged = {"logps/good": logps[is_good].detach(), "logps/bad": logps[~is_good].detach()}
        return TaskLoss({"tokens": losses.sum()}, logged)


def _answers(batch: Batch) -> dict[str, Any]:
    """The first conversation of each row; the second, with the answer of another row, has no use here."""
    return {name: values[: row_count(batch)] for name, values in batch.items()}
