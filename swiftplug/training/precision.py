"""The precision that a model's weights get for training."""

import torch

from swiftplug.plugin.arguments import RunArguments
from swiftplug.runs.model import autocast_dtype


def set_precision(model: torch.nn.Module, args: RunArguments) -> None:
    """Make trainable weights float32, and frozen ones the type of autocast; quantized weights stay as they are."""
    quantized = getattr(model, "is_quantized", False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
        elif parameter.is_floating_point() and not quantized:
            parameter.data = parameter.data.to(autocast_dtype(args.training_args))
