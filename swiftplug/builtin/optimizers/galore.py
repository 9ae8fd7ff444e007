"""GaLore: Adam on gradients projected to a low rank, so that its moments are small (arXiv 2403.03507)."""

import re
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from pytorch_optimizer import GaLore
from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

from swiftplug.builtin.optimizers.groups import Made, decay_groups, hidden_matrices, trainable
from swiftplug.errors import UserError, nearest


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
) -> Made:
    """AdamW, on matrices inside the network with a projected gradient.

    Args:
        args: The run's arguments.
        model: The model to train.
        dataset: The training set.
        rank: The rank of the projection.
        update_proj_gap: Steps from one singular value decomposition to the next.
        scale: What the projected update is multiplied by.
        projection_type: Which side is projected: `std` takes the shorter.
        target_modules: Regular expressions, found anywhere in a parameter's name: the matrices to project. None is all
            but embeddings and output head.

    Raises:
        UserError: If no matrix trains, or an expression is malformed or matches none.
    """
    matrices = hidden_matrices(model)
    projected = matrices if target_modules is None else _matching(matrices, target_modules)
    if not projected:
        raise UserError("optimizer galore: no matrix inside the network trains")
    rest = {name: parameter for name, parameter in trainable(model).items() if name not in projected}
    projection = {
        "rank": rank,
        "update_proj_gap": update_proj_gap,
        "scale": scale,
        "projection_type": projection_type,
    }
    groups = [
        *decay_groups(model, projected, args.weight_decay, **projection),
        *decay_groups(model, rest, args.weight_decay),
    ]
    betas = (args.adam_beta1, args.adam_beta2)
    return _GaLore(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon), None


def _matching(matrices: dict[str, torch.nn.Parameter], patterns: list[str]) -> dict[str, torch.nn.Parameter]:
    found: dict[str, torch.nn.Parameter] = {}
    for pattern in patterns:
        try:
            matches = {name: matrix for name, matrix in matrices.items() if re.search(pattern, name)}
        except re.error as error:
            raise UserError(f"optimizer galore: {pattern!r} is not a regular expression: {error}") from error
        if not matches:
            parts = {part for name in matrices for part in name.split(".") if not part.isdigit()}
            raise UserError(f"optimizer galore: no matrix matches {pattern!r}{nearest(pattern, parts)}")
        found |= matches
    return found


class _GaLore(GaLore):
    """The library's GaLore, with a state of plain tensors and numbers.

    The library keeps a Python object for each matrix, which a safe load of a checkpoint refuses, and which would not
    move to the parameter's device.
    """

    def state_dict(self) -> dict[str, Any]:
        packed = super().state_dict()
        packed["state"] = {index: _plain(state) for index, state in packed["state"].items()}
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for parameter in group["params"]:
                if "projector" in self.state[parameter]:
                    self.state[parameter]["projector"] = _projector(group, self.state[parameter]["projector"])


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    if "projector" not in state:
        return state
    projector = state["projector"]
    kept = {"ortho_matrix": projector.ortho_matrix, "last_svd_step": projector.last_svd_step}
    return {**state, "projector": kept}


def _projector(group: dict[str, Any], kept: dict[str, Any]) -> GaLoreProjector:
    projector = GaLoreProjector(
        rank=group["rank"],
        update_proj_gap=group["update_proj_gap"],
        scale=group["scale"],
        projection_type=group["projection_type"],
    )
    projector.ortho_matrix = kept["ortho_matrix"]
    projector.last_svd_step = kept["last_svd_step"]
    return projector
