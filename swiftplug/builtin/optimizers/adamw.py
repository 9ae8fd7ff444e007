"""AdamW: Trainer's own, and with the learning rates of LoRA+."""

from typing import Any, cast

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from pydantic import PositiveFloat

from swiftplug.builtin.optimizers.groups import OptimizerPair, trainable_parameters
from swiftplug.plugin import RunArguments, UserError


def default(args: Any, model: torch.nn.Module, dataset: Any) -> OptimizerPair:
    """Trainer's own: `training.optim` and `training.lr_scheduler_type` choose the optimizer and the schedule."""
    return None, None


def lorap(
    args: Any,
    model: torch.nn.Module,
    dataset: Any,
    *,
    lr_ratio: PositiveFloat = 16,
    lr_embedding: PositiveFloat = 1e-6,
) -> OptimizerPair:
    """LoRA+ (arXiv 2402.12354): AdamW with a higher learning rate for LoRA's B matrices.

    B matrices, and vectors, get `lr_ratio` times `training.learning_rate`.

    Args:
        args: The run's arguments.
        model: A model with LoRA.
        dataset: The training set.
        lr_ratio: The ratio of the two learning rates.
        lr_embedding: The learning rate of LoRA on embeddings.

    Raises:
        UserError: No B matrix is trained.
    """
    if not any("lora_B" in name or "lora_embedding_B" in name for name in trainable_parameters(model)):
        raise UserError("optimizer lorap: the model has no LoRA matrices to train; use the tuner lora")
    optimizer = create_loraplus_optimizer(
        cast(PeftModel, model),
        torch.optim.AdamW,
        lr=args.learning_rate,
        loraplus_lr_ratio=lr_ratio,
        loraplus_lr_embedding=lr_embedding,
        loraplus_weight_decay=args.weight_decay,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
    return optimizer, None


def check_run(args: RunArguments) -> None:
    """Reject, before a model is loaded, a tuner that makes no LoRA matrices."""
    if args.tuner.name.removeprefix("swiftplug:") in ("full", "freeze", "ia3"):
        raise UserError(f"optimizer lorap: the tuner {args.tuner.name} makes no LoRA matrices; use the tuner lora")


vars(lorap)["check_run"] = check_run
