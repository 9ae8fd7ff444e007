"""An optimizer: AdamW with a smaller learning rate for earlier layers."""

import re
from typing import Any

import torch

from swiftplug.plugin import RunArguments


# The keyword-only parameters are the plugin's options; they are checked against their annotations.
def layerwise_adamw(
    args: RunArguments, model: torch.nn.Module, dataset: Any, *, decay: float = 0.9
) -> tuple[torch.optim.Optimizer, None]:
    """AdamW with a learning rate that falls from the last layer to the first (Howard and Ruder, arXiv 1801.06146).

    Args:
        args: The run's arguments: every key of the config and every field of `TrainingArguments` is an attribute.
        model: The model, as the tuner has prepared it.
        dataset: The encoded training set.
        decay: Each layer has this share of the learning rate of the next.

    Returns:
        The optimizer, and None for the scheduler: then Trainer makes that of `training.lr_scheduler_type`.
    """
    depths: dict[int, list[torch.nn.Parameter]] = {}
    depth = 0  # what comes before the first layer: the embeddings
    for name, parameter in model.named_parameters():
        if layer := re.search(r"\.(\d+)\.", name):
            depth = int(layer[1]) + 1
        if parameter.requires_grad:
            depths.setdefault(depth, []).append(parameter)
    groups = [
        {"params": parameters, "lr": args.learning_rate * decay ** (max(depths) - depth)}
        for depth, parameters in depths.items()
    ]
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=args.adam_epsilon, weight_decay=args.weight_decay), None
