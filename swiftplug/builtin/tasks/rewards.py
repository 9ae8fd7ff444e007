"""Reward models: of whole answers, from pairs, and of the steps of an answer."""

from collections.abc import Iterable
from typing import Any

from pydantic import NonNegativeFloat
from torch.nn.functional import cross_entropy, logsigmoid

from swiftplug.plugin import IGNORED_LABEL, Batch, Rows, Task, TaskLoss, TaskModel, UserError


class RewardModelling(Task):
    """Trains a model that gives an answer a number, the higher the better, on pairs (Bradley-Terry; arXiv 2203.02155).

    Args:
        center_rewards_coefficient: The weight of a further part of the loss, which draws the mean of a pair's rewards
            to zero (arXiv 2312.09244).
    """

    rows = Rows.PAIRS
    head = "sequence"
    num_labels = 1

    def __init__(self, center_rewards_coefficient: NonNegativeFloat = 0.0) -> None:
        self.center_rewards_coefficient = center_rewards_coefficient

    def log_names(self) -> Iterable[str]:
        """The rewards of both answers, and how they compare."""
        return "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """`-log sigmoid(reward of the chosen - reward of the rejected answer - margin)`, and the centring."""
        chosen, rejected = model.outputs(batch).logits.squeeze(-1).float().chunk(2)
        loss = -logsigmoid(chosen - rejected - batch["margin"]).sum()
        if self.center_rewards_coefficient:
            loss = loss + self.center_rewards_coefficient * (chosen + rejected).square().sum()
        better, worse = chosen.detach(), rejected.detach()
        logged = {
            "rewards/chosen": better,
            "rewards/rejected": worse,
            "rewards/accuracies": (better > worse).float(),
            "rewards/margins": better - worse,
        }
        return TaskLoss({"rows": loss}, logged)


class StepRewardModelling(Task):
    """Trains a model that tells right steps of an answer from wrong ones (process supervision; arXiv 2211.14275).

    Args:
        step_separator: The text behind each step; its last token gets the label. What scores answers with the model
            splits them at the same text, which `reward_model` finds in the run's folder.

    Raises:
        UserError: The separator is empty.
    """

    rows = Rows.STEPS
    head = "token"
    num_labels = 2

    def __init__(self, step_separator: str = "\n") -> None:
        if not step_separator:
            raise UserError("task.step_separator: is empty, expected the text behind each step")
        self.step_separator = step_separator

    def counts(self, batch: Batch) -> dict[str, Any]:
        """Steps."""
        return {"steps": (batch["labels"] != IGNORED_LABEL).sum()}

    def log_names(self) -> Iterable[str]:
        """The accuracy, and the probabilities of being right."""
        return "accuracy", "probability/right", "probability/wrong"

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """The cross entropy of the steps' labels; logged are the probabilities of being right, and the accuracy."""
        is_step = batch["labels"] != IGNORED_LABEL
        logits, labels = model.outputs(batch).logits[is_step].float(), batch["labels"][is_step]
        probabilities = logits.detach().softmax(dim=-1)[:, 1]
        logged = {
            "accuracy": (logits.detach().argmax(dim=-1) == labels).float(),
            "probability/right": probabilities[labels == 1],
            "probability/wrong": probabilities[labels == 0],
        }
        return TaskLoss({"steps": cross_entropy(logits, labels, reduction="sum")}, logged)
