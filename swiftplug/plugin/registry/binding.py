"""A plugin's object and its options, made into what a run calls."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from swiftplug.errors import UserError
from swiftplug.plugin.registry.contracts import check_pair, is_function, is_metric_factory


class BoundMetric(NamedTuple):
    """A metric, ready for use.

    Attributes:
        name: The plugin's name.
        compute: `(EvalPrediction) -> dict[str, float]`; for one that generates `(predictions, references) -> ...`.
        preprocess: `(logits, labels) -> tensor`; None for the argmax token ids.
        generate: Whether it judges generated answers.
        max_new_tokens: How many tokens to generate for it.
    """

    name: str
    compute: Callable[..., dict[str, float]]
    preprocess: Callable[..., Any] | None
    generate: bool = False
    max_new_tokens: int = 256


@dataclass(frozen=True)
class BoundTuner:
    """A tuner with its options.

    Attributes:
        tuner: The plugin.
        options: What `prepare_model` is called with.
    """

    tuner: Any
    options: dict[str, Any]

    def prepare_model(self, args: Any, model: Any) -> Any:
        """See `Tuner.prepare_model`."""
        return self.tuner.prepare_model(args, model, **self.options)

    def save_pretrained(
        self, model: Any, save_directory: str, state_dict: Any = None, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """See `Tuner.save_pretrained`; `state_dict` is not passed on where there is none."""
        if state_dict is not None:
            kwargs["state_dict"] = state_dict
        self.tuner.save_pretrained(model, save_directory, safe_serialization=safe_serialization, **kwargs)

    def from_pretrained(self, model: Any, model_id: str, **kwargs: Any) -> Any:
        """See `Tuner.from_pretrained`."""
        return self.tuner.from_pretrained(model, model_id, **kwargs)


def bind(kind: str, name: str, plugin: Any, options: dict[str, Any]) -> Any:
    """Apply checked options to a plugin.

    Args:
        kind: A key of `KINDS`.
        name: The plugin's name.
        plugin: An object that fits the kind's contract.
        options: Options that it takes.

    Returns:
        For a callback a function `(args) -> TrainerCallback`, for a metric a `BoundMetric`, for a tuner a `BoundTuner`;
        else the function or the instance to call.

    Raises:
        ContractError: If the factory of a metric does not return a pair.
    """
    if kind == "tuner":
        return BoundTuner(plugin, options)
    bound: Any = plugin
    if inspect.isclass(plugin):
        bound = plugin(**options)
    elif is_function(plugin):
        bound = _with_options(plugin, options) if options else plugin
    match kind:
        case "callback":
            return partial(_made_callback, name, bound) if is_function(plugin) else lambda args: bound
        case "metric":
            return _bound_metric(name, plugin, bound)
        case _:
            return bound


def _with_options(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    bound = partial(function, **options)
    vars(bound).update(vars(function))  # a contract may have attributes, such as `generate`
    return bound


def _made_callback(name: str, factory: Callable[[Any], Any], args: Any) -> Any:
    from transformers import TrainerCallback

    callback = factory(args)
    if not isinstance(callback, TrainerCallback):
        raise UserError(
            f"callback {name!r}: its function returned {type(callback).__name__}, expected a TrainerCallback"
        )
    return callback


def _bound_metric(name: str, plugin: Any, bound: Any) -> BoundMetric:
    if getattr(plugin, "generate", False) is True:
        return BoundMetric(name, bound, None, True, getattr(bound, "max_new_tokens", 256))
    pair = bound() if is_metric_factory(plugin) else bound
    check_pair(pair)
    return BoundMetric(name, *pair)
