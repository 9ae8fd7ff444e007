"""Schedule-free AdamW: averaged weights in place of a learning-rate schedule (arXiv 2405.15682)."""

from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from transformers import get_constant_schedule

from swiftplug.builtin.optimizers.groups import Made, decay_groups, trainable


def schedule_free(
    args: Any, model: torch.nn.Module, dataset: Any, *, r: float = 0.0, weight_lr_power: float = 2.0
) -> Made:
    """Meta's AdamW without a schedule: constant after the warmup that `training.warmup_steps` gives.

    Weights are those to use in the optimizer's `eval()` mode only, which Trainer enters at every evaluation.

    Args:
        args: The run's arguments.
        model: The model to train.
        dataset: The training set.
        r: The power of the step that weighs it in the average.
        weight_lr_power: The power of the learning rate that weighs a step in the average, during warmup.
    """
    optimizer = AdamWScheduleFree(
        decay_groups(model, trainable(model), args.weight_decay),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        warmup_steps=args.training_args.get_warmup_steps(args.num_training_steps),
        r=r,
        weight_lr_power=weight_lr_power,
    )
    return optimizer, get_constant_schedule(optimizer)
