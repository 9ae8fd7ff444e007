"""Muon for the matrices inside the network, AdamW for all other parameters."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from swiftplug.builtin.optimizers.groups import OptimizerPair, decay_groups, hidden_matrices, trainable_parameters
from swiftplug.plugin import UserError


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
) -> OptimizerPair:
    """Muon (kellerjordan.github.io/posts/muon) for matrices inside the network, AdamW for all other parameters.

    Muon's updates are momentum, orthogonalized by a Newton-Schulz iteration. Embeddings, output head, norms, biases
    and everything else that is not a matrix go to AdamW.

    Args:
        args: The run's arguments; `training.learning_rate` and `training.weight_decay` apply to Muon too.
        model: The model to train.
        dataset: The training set.
        momentum: Muon's momentum.
        nesterov: Whether to use Nesterov momentum.
        ns_steps: Number of Newton-Schulz iterations.
        adjust_lr_fn: How the learning rate depends on a matrix's shape: `match_rms_adamw` (arXiv 2502.16982) makes
            updates as large as AdamW's, so that AdamW's learning rates fit; `original` is Jordan's, and needs about
            0.02.
        adamw_lr: The learning rate of AdamW; None for the same as Muon's.

    Raises:
        UserError: No matrix is trained.
    """
    matrices = hidden_matrices(model)
    if not matrices:
        raise UserError("optimizer muon: no matrix inside the network is trained")
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
    if others := trainable_parameters(model, excluding=matrices):
        optimizers.append(
            torch.optim.AdamW(
                decay_groups(model, others, args.weight_decay),
                lr=args.learning_rate if adamw_lr is None else adamw_lr,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
            )
        )
    return ChainedOptimizer(optimizers), None


class ChainedOptimizer(torch.optim.Optimizer):
    """Several optimizers, each for its own parameters, that act as one.

    Groups and state are shared with the chained optimizers, not copied, so a schedule, a checkpoint or a gradient
    scaler works with it as with any other optimizer.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share_state()

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Step each optimizer once; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state; see `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._share_state()

    def _share_state(self) -> None:
        """Give the optimizers this one's groups and state, which torch replaces when a state is loaded."""
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state
