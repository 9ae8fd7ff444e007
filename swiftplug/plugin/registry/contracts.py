"""What an object must look like to be a plugin of its kind, checked without calling it."""

import inspect
from functools import partial
from typing import Any, NamedTuple

from swiftplug.plugin.engine import Engine
from swiftplug.plugin.loss import TokenLoss
from swiftplug.plugin.rewards import ORM, PRM
from swiftplug.plugin.tuner import Tuner


class ContractError(Exception):
    """An object that does not fit the contract of its kind; the message is the cause, in one line."""


class Call(NamedTuple):
    """How something will be called.

    Attributes:
        positional: The names of what is passed by position.
        keywords: The names of what is passed by keyword.
        optional: Names that are passed by keyword only to those who have them.
    """

    positional: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = [f"{name}=..." for name in (*self.keywords, *self.optional)]
        return f"({', '.join([*self.positional, *named])})"


CALLS: dict[str, Call] = {
    "callback": Call(("args",)),
    "loss": Call(("outputs", "labels"), optional=("loss_scale", "num_items_in_batch")),
    "optimizer": Call(("args", "model", "dataset")),
    "tools": Call(("tool_names", "tool_descs")),
    "prm": Call(("infer_requests",), ("ground_truths",)),
    "orm": Call(("infer_requests", "ground_truths")),
    "model": Call(("args",)),
    "dataset": Call(()),
}
COMPUTE = Call(("eval_prediction",))
PREPROCESS = Call(("logits", "labels"))
GENERATED = Call(("predictions", "references"))
LOSS_SCALE = Call(("context", "context_type", "is_last_round"), ("query",))
TOKEN_LOSS = Call(("logits", "targets"))
ENGINE_CALLS: dict[str, Call] = {
    "prompts_at_once": Call(("sampling",)),
    "open": Call(("args", "sampling")),
    "generate": Call(("prompts",)),
    "close": Call(()),
}
TUNER_CALLS: dict[str, Call] = {
    "prepare_model": Call(("args", "model")),
    "save_pretrained": Call(("model", "save_directory"), ("state_dict", "safe_serialization")),
    "from_pretrained": Call(("model", "model_id"), ("is_trainable",)),
}


def check_contract(kind: str, plugin: Any) -> None:
    """Check that an object fits the contract of a kind.

    Args:
        kind: A key of `KINDS`.
        plugin: What the entry point names.

    Raises:
        ContractError: If it does not.
    """
    match kind:
        case "callback":
            _check_callback(plugin)
        case "loss_scale":
            _check_method(plugin, "get_loss_scale", LOSS_SCALE)
        case "metric":
            _check_metric(plugin)
        case "tuner":
            for name, call in TUNER_CALLS.items():
                _check_method(plugin, name, call, declared_by=(Tuner,))
        case "engine":
            _check_engine(plugin)
        case "model" if isinstance(plugin, str):
            pass
        case _:
            _check_callable(plugin, CALLS[kind])


def is_function(plugin: Any) -> bool:
    """Whether a plugin is a function (or a partial of one), whose keyword-only parameters are its options."""
    return inspect.isroutine(plugin) or isinstance(plugin, partial)


def is_metric_factory(plugin: Any) -> bool:
    """Whether a metric is a function without positional parameters, which returns the pair."""
    return is_function(plugin) and not any(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL)
        for parameter in inspect.signature(plugin).parameters.values()
    )


def check_pair(pair: Any) -> None:
    """Check the pair of a metric.

    Raises:
        ContractError: If it is not `(compute(eval_prediction), preprocess(logits, labels) or None)`.
    """
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ContractError(
            f"is {_described(pair)}, expected a pair (compute, preprocess or None), or a function of keyword-only "
            "options that returns one, or a class with `generate = True`"
        )
    compute, preprocess = pair
    _check_call(compute, COMPUTE, "compute")
    if preprocess is not None:
        _check_call(preprocess, PREPROCESS, "preprocess")


def _check_callback(plugin: Any) -> None:
    if is_function(plugin):
        _check_call(plugin, CALLS["callback"], takes_options=True)
        return
    from transformers import TrainerCallback

    fits = issubclass(plugin, TrainerCallback) if inspect.isclass(plugin) else isinstance(plugin, TrainerCallback)
    if not fits:
        raise ContractError(
            f"is {_described(plugin)}, expected a subclass of transformers.TrainerCallback, an instance of one, or a "
            "function (args) that returns one"
        )


def _check_engine(plugin: Any) -> None:
    cls = plugin if inspect.isclass(plugin) else type(plugin)
    if not issubclass(cls, Engine):
        raise ContractError(f"is {_described(plugin)}, expected a subclass of swiftplug.plugin.Engine")
    for name, call in ENGINE_CALLS.items():
        _check_method(plugin, name, call, declared_by=(Engine,) if name == "generate" else ())


def _check_metric(plugin: Any) -> None:
    if getattr(plugin, "generate", False) is True:
        _check_callable(plugin, GENERATED)
    elif not is_metric_factory(plugin):
        check_pair(plugin)


def _check_callable(plugin: Any, call: Call) -> None:
    """Check a function, a callable instance, or a class whose instances are callable."""
    if not inspect.isclass(plugin):
        _check_call(plugin, call, takes_options=is_function(plugin))
    elif issubclass(plugin, TokenLoss) and call is CALLS["loss"]:
        _check_method(plugin, "token_loss", TOKEN_LOSS, declared_by=(TokenLoss,))
    else:
        _check_method(plugin, "__call__", call, declared_by=(ORM, PRM))


def _check_method(plugin: Any, name: str, call: Call, *, declared_by: tuple[type, ...] = ()) -> None:
    """Check a method of a class or an instance; one that a base class of ours only declares does not count."""
    is_class = inspect.isclass(plugin)
    classes = (plugin if is_class else type(plugin)).__mro__
    owner = next((cls for cls in classes if name in vars(cls)), None)
    if owner is None or owner in declared_by:
        raise ContractError(f"is {_described(plugin)} that does not define {name}{call}")
    needs_self = is_class and inspect.isfunction(vars(owner)[name])
    if needs_self and Tuner in declared_by:
        raise ContractError(f"must have {name}{call} as a static method")
    if needs_self:
        call = call._replace(positional=("self", *call.positional))
    _check_call(getattr(plugin, name), call, name, takes_options=name == "prepare_model")


def _check_call(function: Any, call: Call, name: str = "", *, takes_options: bool = False) -> None:
    if not callable(function):
        has = f"has a {name} that is" if name else "is"
        raise ContractError(f"{has} {_described(function)}, expected a callable {call}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell theirs
        return
    passed = {*call.keywords, *(signature.parameters.keys() & set(call.optional))}
    if takes_options:
        passed |= {it.name for it in signature.parameters.values() if it.kind is it.KEYWORD_ONLY}
    try:
        signature.bind(*call.positional, **dict.fromkeys(passed))
    except TypeError as error:
        found = f"{name}{_without_annotations(signature)}"
        raise ContractError(f"has the wrong signature {found}, expected {name}{call} ({error})") from None


def _without_annotations(signature: inspect.Signature) -> inspect.Signature:
    bare = [it.replace(annotation=inspect.Parameter.empty) for it in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)


def _described(plugin: Any) -> str:
    if inspect.isclass(plugin):
        return f"the class {plugin.__name__}"
    if is_function(plugin):
        return "a function"
    return (
        f"{type(plugin).__name__} {plugin!r:.60}"
        if isinstance(plugin, str | int | float)
        else (f"an instance of {type(plugin).__name__}")
    )
