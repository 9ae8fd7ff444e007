"""Schedule-free AdamW: averaged weights instead of a learning-rate schedule."""

from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from transformers import get_constant_schedule

from swiftplug.builtin.optimizers.groups import OptimizerPair, decay_groups, trainable_parameters


def schedule_free(
    args: Any, model: torch.nn.Module, dataset: Any, *, r: float = 0.0, weight_lr_power: float = 2.0
) -> OptimizerPair:
    """Schedule-free AdamW (arXiv 2405.15682): averaged weights instead of a learning-rate schedule.

    The learning rate is constant after the warmup of `training.warmup_steps`. The averaged weights are in the model
    only in the optimizer's `eval()` mode, which Trainer enters at every evaluation.

    Args:
        args: The run's arguments.
        model: The model to train.
        dataset: The training set.
        r: Each step is weighted in the average by its number to this power.
        weight_lr_power: During warmup, each step is weighted in the average by its learning rate to this power.
    """
    optimizer = AdamWScheduleFree(
        decay_groups(model, trainable_parameters(model), args.weight_decay),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        warmup_steps=args.training_args.get_warmup_steps(args.num_training_steps),
        r=r,
        weight_lr_power=weight_lr_power,
    )
    return optimizer, get_constant_schedule(optimizer)
