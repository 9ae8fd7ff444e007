"""GaLore: AdamW whose gradients are projected to a low rank, so that its moments take little memory."""

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from pytorch_optimizer import GaLore
from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

from swiftplug.builtin.optimizers.groups import OptimizerPair, decay_groups, hidden_matrices, trainable_parameters
from swiftplug.builtin.patterns import matching_names
from swiftplug.plugin import RunArguments, UserError


def galore(
    args: Any,
    model: torch.nn.Module,
    dataset: Any,
    *,
    rank: PositiveInt = 128,
    update_proj_gap: PositiveInt = 200,
    scale: float = 0.25,
    projection_type: Literal["std", "reverse_std", "right", "left", "full"] = "std",
    target_modules: list[str] | None = None,
) -> OptimizerPair:
    """GaLore (arXiv 2403.03507): AdamW that projects the gradients of matrices to a low rank, to save memory.

    Args:
        args: The run's arguments.
        model: The model to train.
        dataset: The training set.
        rank: The rank of the projection.
        update_proj_gap: Number of steps between two singular value decompositions.
        scale: Factor of the projected update.
        projection_type: Which side is projected: `std` takes the shorter one.
        target_modules: Regular expressions, found anywhere in a parameter's name: the matrices to project. None is
            every matrix except embeddings and the output head.

    Raises:
        UserError: No matrix is trained, or an expression is malformed or matches none.
    """
    projected = hidden_matrices(model)
    if target_modules is not None:
        names = matching_names(projected, target_modules, where="optimizer galore", noun="matrix")
        projected = {name: matrix for name, matrix in projected.items() if name in names}
    if not projected:
        raise UserError("optimizer galore: no matrix inside the network is trained")
    projection = {
        "rank": rank,
        "update_proj_gap": update_proj_gap,
        "scale": scale,
        "projection_type": projection_type,
    }
    others = trainable_parameters(model, excluding=projected)
    groups = [
        *decay_groups(model, projected, args.weight_decay, **projection),
        *decay_groups(model, others, args.weight_decay),
    ]
    betas = (args.adam_beta1, args.adam_beta2)
    return _GaLore(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon), None


def check_run(args: RunArguments) -> None:
    """Reject a run in which no process has a whole gradient to project."""
    if args.fsdp or args.deepspeed:
        raise UserError("optimizer galore: cannot project gradients that FSDP or DeepSpeed shards; use DDP")


vars(galore)["check_run"] = check_run


class _GaLore(GaLore):
    """The library's GaLore, with a state of plain tensors and numbers.

    The library's state has a Python object for each matrix. A safe load of a checkpoint would reject it, and it would
    not move to the parameter's device.
    """

    def state_dict(self) -> dict[str, Any]:
        packed = super().state_dict()
        for index, state in packed["state"].items():
            if projector := state.get("projector"):
                plain = {"ortho_matrix": projector.ortho_matrix, "last_svd_step": projector.last_svd_step}
                packed["state"][index] = {**state, "projector": plain}
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for state in (self.state[parameter] for parameter in group["params"]):
                if plain := state.get("projector"):
                    options = {name: group[name] for name in ("rank", "update_proj_gap", "scale", "projection_type")}
                    state["projector"] = projector = GaLoreProjector(**options)
                    projector.ortho_matrix = plain["ortho_matrix"]
                    projector.last_svd_step = plain["last_svd_step"]
