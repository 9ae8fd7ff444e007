"""Muon for the matrices inside the network, AdamW for the rest."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from swiftplug.builtin.optimizers.chained import Chained
from swiftplug.builtin.optimizers.groups import Made, decay_groups, hidden_matrices, trainable
from swiftplug.errors import UserError


def muon(
    args: Any,
    model: torch.nn.Module,
    dataset: Any,
    *,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95,
    nesterov: bool = True,
    ns_steps: PositiveInt = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw",
    adamw_lr: PositiveFloat | None = None,
) -> Made:
    """Momentum orthogonalized by Newton-Schulz iteration (Keller Jordan, kellerjordan.github.io/posts/muon).

    Embeddings, output head, norms, biases and all else that is not a matrix go to AdamW.

    Args:
        args: The run's arguments; `training.learning_rate` and `training.weight_decay` are Muon's too.
        model: The model to train.
        dataset: The training set.
        momentum: Muon's momentum.
        nesterov: Whether that is Nesterov's.
        ns_steps: How many iterations.
        adjust_lr_fn: How the learning rate follows a matrix's shape: `match_rms_adamw` (arXiv 2502.16982) makes updates
            as large as AdamW's, so that its learning rates serve; `original` is Jordan's, and wants about 0.02.
        adamw_lr: The learning rate of AdamW where it is another.

    Raises:
        UserError: If no matrix trains.
    """
    matrices = hidden_matrices(model)
    if not matrices:
        raise UserError("optimizer muon: no matrix inside the network trains")
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            decay_groups(model, matrices, args.weight_decay),
            lr=args.learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )
    ]
    rest = {name: parameter for name, parameter in trainable(model).items() if name not in matrices}
    if rest:
        optimizers.append(
            torch.optim.AdamW(
                decay_groups(model, rest, args.weight_decay),
                lr=args.learning_rate if adamw_lr is None else adamw_lr,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
            )
        )
    return Chained(optimizers), None
