"""An optimizer: Lion, which steps by the sign of its momentum."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from swiftplug.plugin import RunArguments


# The entry point names this function. It is called when the model is loaded; its keyword-only parameters are options.
def custom(
    args: RunArguments,
    model: torch.nn.Module,
    dataset: Any,
    *,
    betas: tuple[float, float] = (0.9, 0.99),
    lr_scale: float = 0.3,
) -> tuple[torch.optim.Optimizer, None]:
    """Lion on all trained parameters, with weight decay on matrices only.

    A step by the sign is larger than one of AdamW, so the paper's learning rates are 3 to 10 times smaller: `lr_scale`
    does that, so that a config can keep its `learning_rate`.

    Args:
        args: The run's arguments: every field of the config and of `TrainingArguments` is an attribute.
        model: The model, after its tuner has prepared it.
        dataset: The encoded training set.
        betas: The share of the momentum in a step, and its decay.
        lr_scale: Factor for `training.learning_rate`.

    Returns:
        The optimizer, and None for the scheduler: Trainer makes the one of `training.lr_scheduler_type`.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    lr = args.learning_rate * lr_scale
    print(f"custom: Lion, lr {lr:g}, betas {betas}, {len(trained)} tensors, {len(matrices)} matrices", flush=True)
    return Lion(groups, lr=lr, betas=betas), None


class Lion(torch.optim.Optimizer):
    """Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675, algorithm 2."""

    def __init__(self, params: Iterable[Any], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move every parameter by `lr`, up or down. Trainer saves and restores what is in `self.state`."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                direction = (beta1 * momentum + (1 - beta1) * parameter.grad).sign()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                momentum.mul_(beta2).add_(parameter.grad, alpha=1 - beta2)
