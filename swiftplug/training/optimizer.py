"""What an optimizer plugin makes, checked."""

from typing import Any, NamedTuple

import torch

from swiftplug.errors import UserError
from swiftplug.plugin.arguments import RunArguments
from swiftplug.plugin.registry import LoadedPlugin


class MadeOptimizer(NamedTuple):
    """An optimizer and its scheduler; None where Trainer's own is to be taken."""

    optimizer: torch.optim.Optimizer | None
    scheduler: Any


def make_optimizer(plugin: LoadedPlugin, args: RunArguments, model: torch.nn.Module, dataset: Any) -> MadeOptimizer:
    """Ask a plugin for an optimizer.

    Args:
        plugin: The optimizer plugin.
        args: The run's arguments.
        model: The model to train.
        dataset: The training dataset.

    Raises:
        UserError: It returned something other than its contract says.
    """
    made = plugin.bound(args, model, dataset)
    name = f"optimizer {plugin.found.qualified_name!r}"
    if not isinstance(made, tuple) or len(made) != 2:
        raise UserError(f"{name}: returned a {type(made).__name__}; expected a pair (optimizer, scheduler)")
    optimizer, scheduler = made
    if optimizer is None and scheduler is not None:
        raise UserError(f"{name}: returned a scheduler without its optimizer")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"{name}: returned a {type(optimizer).__name__} first; expected a torch.optim.Optimizer or None"
        )
    return MadeOptimizer(optimizer, scheduler)
