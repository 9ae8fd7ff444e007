"""Trainer's own optimizer and schedule."""

from typing import Any

import torch


def default(
    args: Any, model: torch.nn.Module, dataset: Any
) -> tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None]:
    """Leave both to Trainer: `training.optim` and `training.lr_scheduler_type` choose them."""
    return None, None
