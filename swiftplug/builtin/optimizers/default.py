"""Trainer's own optimizer and schedule."""

from typing import Any

import torch

from swiftplug.builtin.optimizers.groups import Made


def default(args: Any, model: torch.nn.Module, dataset: Any) -> Made:
    """Leave both to Trainer: `training.optim` and `training.lr_scheduler_type` choose them."""
    return None, None
