"""Reward models: of whole answers, from pairs, and of the steps of an answer."""

import torch
from pydantic import NonNegativeFloat
from torch.nn.functional import logsigmoid

from swiftplug.plugin import Rows, Task, TaskLoss, TaskModel
from swiftplug.plugin.task import Batch


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

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """`-log sigmoid(reward of the chosen - reward of the rejected answer - margin)`, and the centring."""
        chosen, rejected = model.outputs(batch).logits.squeeze(-1).float().chunk(2)
        margin = batch.get("margin", torch.zeros_like(chosen))
        loss = -logsigmoid(chosen - rejected - margin).sum()
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
