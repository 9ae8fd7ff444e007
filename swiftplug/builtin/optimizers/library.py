"""The optimizers of the pytorch_optimizer library, by name."""

import inspect
from typing import Any

import pytorch_optimizer as library
import torch
from pytorch_optimizer.optimizer.scion import LMONorm
from transformers import get_constant_schedule

from swiftplug.builtin.optimizers.groups import OptimizerPair, decay_groups, hidden_matrices, trainable_parameters
from swiftplug.plugin import UserError, nearest

_BACKWARD = "it replaces the backward pass"
_CLOSURE = "it evaluates the model itself, which Trainer does not allow"
_SECOND = "it needs second derivatives, which Trainer does not compute"
_STATE = "its state is lost in a checkpoint"
_LOW_RANK = "it would act as AdamW, because parameter groups have no rank"
_REFUSED = {
    "a2grad": "it has no learning rate for a schedule to change",
    "adahessian": _SECOND,
    "adalomo": _BACKWARD,
    "adammini": "it builds parameter groups itself, from its own names",
    "adashift": _STATE,
    "alig": _CLOSURE,
    "apollo": _LOW_RANK,
    "bsam": _CLOSURE,
    "conda": _STATE,
    "distributedmuon": "use the optimizer muon",
    "fira": _LOW_RANK,
    "galore": "use the optimizer galore",
    "lbfgs": _CLOSURE,
    "lomo": _BACKWARD,
    "magma": "it wraps another optimizer",
    "scalableshampoo": _STATE,
    "sophiah": _SECOND,
    "spectralsphere": "it takes matrices only",
}
_DIVIDES_BY_RATE = {"asgd", "ftrl", "gravity"}


def pytorch_optimizer(
    args: Any, model: torch.nn.Module, dataset: Any, *, algorithm: str, **parameters: Any
) -> OptimizerPair:
    """Any optimizer of the pytorch_optimizer library: `{name: pytorch_optimizer, algorithm: lion}`.

    The learning rate is `training.learning_rate` unless `lr` is given (some algorithms, like prodigy, need 1.0), weight
    decay is `training.weight_decay`; all other defaults are the library's. Algorithms of Muon's family get the matrices
    inside the network, and their own AdamW all other parameters. Schedule-free algorithms get a constant learning rate.

    Args:
        args: The run's arguments.
        model: The model to train.
        dataset: The training set.
        algorithm: The name of the class, in any case.
        **parameters: Its parameters: `betas: [0.95, 0.98]`.

    Raises:
        UserError: The library has no such algorithm, it cannot be used in Trainer, or it does not take a parameter.
    """
    optimizer_class, known = _find(algorithm, parameters)
    if algorithm.lower() in _DIVIDES_BY_RATE and args.training_args.get_warmup_steps(args.num_training_steps):
        raise UserError(
            f"optimizer pytorch_optimizer: {algorithm} divides by the learning rate, and a warmup starts at 0: set "
            "training.warmup_steps to 0"
        )
    parameters = {"lr": args.learning_rate, **parameters}
    weight_decay = parameters.pop("weight_decay", args.weight_decay)
    if "adamw_lr" in known:  # Muon's family
        parameters = {"adamw_lr": parameters["lr"], **parameters}
        matrices = hidden_matrices(model)
        others = trainable_parameters(model, excluding=matrices)
        groups = [
            *decay_groups(model, matrices, weight_decay, use_muon=True),
            *decay_groups(model, others, weight_decay, use_muon=False),
        ]
    else:
        groups = decay_groups(model, trainable_parameters(model), weight_decay)
    try:
        optimizer: torch.optim.Optimizer = optimizer_class(groups, **parameters)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"optimizer pytorch_optimizer: {algorithm}: {' '.join(str(error).split())}") from error
    # Two algorithms keep this enum in their groups; a safe load of a checkpoint must allow it.
    torch.serialization.add_safe_globals([LMONorm])
    return optimizer, get_constant_schedule(optimizer) if algorithm.lower().startswith("schedulefree") else None


def check_options(*, algorithm: str, **parameters: Any) -> None:
    """Reject, before a model is loaded, an algorithm or a parameter that cannot be used."""
    _find(algorithm, parameters)


vars(pytorch_optimizer)["check_options"] = check_options


def _find(algorithm: str, parameters: dict[str, Any]) -> tuple[type[torch.optim.Optimizer], set[str]]:
    """The class of an algorithm and the names of its parameters, checked against those given."""
    names = library.get_supported_optimizers()
    name = algorithm.lower()
    if name in _REFUSED:
        raise UserError(f"optimizer pytorch_optimizer: {algorithm!r} cannot be used here: {_REFUSED[name]}")
    if name not in names:
        raise UserError(
            f"optimizer pytorch_optimizer: the library has no algorithm {algorithm!r}"
            f"{nearest(name, set(names) - set(_REFUSED))}"
        )
    optimizer_class = library.load_optimizer(name)
    signature = list(inspect.signature(optimizer_class).parameters.values())[1:]
    known = {parameter.name for parameter in signature if parameter.kind is not parameter.VAR_KEYWORD}
    for given in parameters:
        if given not in known:
            raise UserError(
                f"optimizer pytorch_optimizer: {algorithm} has no parameter {given!r}{nearest(given, known)}"
            )
    required = {
        parameter.name
        for parameter in signature
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    for missing in sorted(required - set(parameters)):
        raise UserError(f"optimizer pytorch_optimizer: {algorithm} needs the parameter {missing!r}")
    return optimizer_class, known
