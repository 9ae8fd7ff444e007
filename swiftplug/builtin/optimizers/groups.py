"""Parameter groups for optimizers."""

from collections.abc import Container
from typing import Any, cast

import torch
from transformers import PreTrainedModel, Trainer

OptimizerPair = tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None]
"""What an optimizer plugin returns: an optimizer and a scheduler, None for Trainer's own."""

Parameters = dict[str, torch.nn.Parameter]
"""Parameters by name."""


def trainable_parameters(model: torch.nn.Module, excluding: Container[str] = ()) -> Parameters:
    """The parameters that are trained, except those with excluded names."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in excluding
    }


def hidden_matrices(model: torch.nn.Module) -> Parameters:
    """The trained matrices inside the network: no embeddings, output head, biases, norms or other vectors."""
    outside = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = cast(PreTrainedModel, model).get_output_embeddings()
    excluded = {id(parameter) for module in [*outside, *([head] if head else [])] for parameter in module.parameters()}
    return {
        name: parameter
        for name, parameter in trainable_parameters(model).items()
        if parameter.ndim == 2 and id(parameter) not in excluded
    }


def decay_groups(
    model: torch.nn.Module, parameters: Parameters, weight_decay: float, **extra: Any
) -> list[dict[str, Any]]:
    """Parameter groups with weight decay on all but biases and norms, as in Trainer; none is empty.

    Args:
        model: The model that the parameters belong to.
        parameters: Those to group.
        weight_decay: The decay of the first group; that of the second is 0.
        **extra: Further entries of both groups.
    """
    # The method does not use its trainer.
    decaying = set(Trainer.get_decay_parameter_names(cast(Trainer, None), model))
    groups = [
        {"params": [p for name, p in parameters.items() if name in decaying], "weight_decay": weight_decay, **extra},
        {"params": [p for name, p in parameters.items() if name not in decaying], "weight_decay": 0.0, **extra},
    ]
    return [group for group in groups if group["params"]]
