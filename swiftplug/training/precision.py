"""The precision that a model's weights get for training."""

import torch

from swiftplug.training.arguments import RunArguments


def half_type(args: RunArguments) -> torch.dtype:
    """The type of autocast; float32 where there is none."""
    return torch.bfloat16 if args.training_args.bf16 else torch.float16 if args.training_args.fp16 else torch.float32


def set_precision(model: torch.nn.Module, args: RunArguments) -> None:
    """Make trainable weights float32, and frozen ones the type of autocast; quantized weights stay as they are."""
    half = half_type(args)
    quantized = getattr(model, "is_quantized", False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
        elif parameter.is_floating_point() and not quantized:
            parameter.data = parameter.data.to(half)
