"""Which parameters an optimizer is given, in which groups."""

from typing import Any, cast

import torch
from transformers import PreTrainedModel, Trainer

Made = tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None]
Named = dict[str, torch.nn.Parameter]


def trainable(model: torch.nn.Module) -> Named:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def decay_groups(model: torch.nn.Module, parameters: Named, weight_decay: float, **extra: Any) -> list[dict[str, Any]]:
    """Parameter groups with weight decay on all but biases and norms, as Trainer has it.

    Args:
        model: The model that the parameters are of.
        parameters: Those to group, by name.
        weight_decay: The decay of the first group; that of the second is 0.
        **extra: Further entries of both groups.

    Returns:
        One or two groups, none of them empty.
    """
    # The method reads nothing of its trainer.
    decaying = set(Trainer.get_decay_parameter_names(cast(Trainer, None), model))
    groups = [
        {"params": [p for name, p in parameters.items() if name in decaying], "weight_decay": weight_decay, **extra},
        {"params": [p for name, p in parameters.items() if name not in decaying], "weight_decay": 0.0, **extra},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: torch.nn.Module) -> Named:
    """The matrices that train inside the network: without embeddings, output head, biases, norms and other vectors."""
    outside = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = cast(PreTrainedModel, model).get_output_embeddings()
    excluded = {id(parameter) for module in [*outside, *([head] if head else [])] for parameter in module.parameters()}
    return {
        name: parameter
        for name, parameter in trainable(model).items()
        if parameter.ndim == 2 and id(parameter) not in excluded
    }
