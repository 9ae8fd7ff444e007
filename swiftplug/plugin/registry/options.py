"""A plugin's options: how a config writes them, and how they are checked and applied."""

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

from swiftplug.errors import ContractError, UserError, closest, nearest
from swiftplug.plugin.registry.contracts import check_metric_pair, compares_texts, is_function
from swiftplug.plugin.registry.declared import DeclaredOptions
from swiftplug.plugin.registry.errors import OptionError
from swiftplug.plugin.registry.scorers import BoundScorer


class PluginChoice(BaseModel):
    """A plugin that a config or a command-line option names, and the options given to it.

    Attributes:
        name: `NAME` or `DISTRIBUTION:NAME`.
        options: Its options; they are checked when the plugin is resolved.

    Example:
        >>> PluginChoice(name="focal", options={"gamma": 2}).to_yaml()
        {'name': 'focal', 'gamma': 2}
    """

    # Build validators at the first use: that takes 30 ms, which `--help` and `list-plugins` do not need.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str = Field(min_length=1)
    options: dict[str, Any] = {}

    def to_yaml(self) -> str | dict[str, Any]:
        """The choice as a config writes it: only the name if there are no options."""
        return {"name": self.name, **self.options} if self.options else self.name


def fields_of(value: Any) -> Any:
    """The fields of a `PluginChoice`, from its form in a config: `focal` or `{name: focal, gamma: 2}`.

    Anything else is returned unchanged; pydantic then rejects it.
    """
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and "name" in value:
        return {"name": value["name"], "options": {key: item for key, item in value.items() if key != "name"}}
    return value


# The type of a config field that chooses a plugin.
PluginField = Annotated[PluginChoice, BeforeValidator(fields_of)]


class BoundMetric(NamedTuple):
    """A metric with its options.

    Attributes:
        name: The plugin's name.
        compute: `(EvalPrediction) -> dict[str, float]`, or `(predictions, references) -> ...` if `generate`.
        preprocess: `(logits, labels) -> tensor`; None for what is predicted: the argmax token ids; in task seq_cls
            class numbers, 0 or 1 of several classes, or numbers.
        generate: Whether it compares generated texts with references.
        max_new_tokens: The number of tokens to generate for it.
    """

    name: str
    compute: Callable[..., dict[str, float]]
    preprocess: Callable[..., Any] | None
    generate: bool = False
    max_new_tokens: int = 256


@dataclass(frozen=True)
class BoundTuner:
    """A tuner whose `prepare_model` gets the options. The methods are those of `swiftplug.plugin.Tuner`."""

    tuner: Any
    options: dict[str, Any]

    @property
    def saves_whole_model(self) -> bool:
        return getattr(self.tuner, "saves_whole_model", False)

    def prepare_model(self, args: Any, model: Any) -> Any:
        return self.tuner.prepare_model(args, model, **self.options)

    def check_run(self, args: Any) -> None:
        """Let a tuner that has a `check_run` refuse a run; it gets the options too."""
        if check := getattr(self.tuner, "check_run", None):
            check(args, **self.options)

    def save_pretrained(
        self, model: Any, save_directory: str, state_dict: Any = None, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Leave out `state_dict` if it is None: tuners written for SWIFT 3.0 do not accept it."""
        if state_dict is not None:
            kwargs["state_dict"] = state_dict
        self.tuner.save_pretrained(model, save_directory, safe_serialization=safe_serialization, **kwargs)

    def from_pretrained(self, model: Any, model_id: str, **kwargs: Any) -> Any:
        return self.tuner.from_pretrained(model, model_id, **kwargs)

    def disabled(self, model: Any) -> Any:
        """None for tuners written for SWIFT 3.0, which have no such method."""
        return self.tuner.disabled(model) if hasattr(self.tuner, "disabled") else None


def check_options(given: Mapping[str, Any], declared: DeclaredOptions) -> dict[str, Any]:
    """Check the options that a user gave, and convert each to its annotated type.

    Returns:
        The converted options. Defaults are not filled in.

    Raises:
        ContractError: If an option is unknown, has the wrong type, or is missing.
    """
    named = declared.named
    for name in given:
        if name in named or declared.any_other:
            continue
        if name in declared.misplaced:
            why = f"takes no option {name!r}: the parameter is not keyword-only; declare it after `*`"
        else:
            why = f"takes no option {name!r}{nearest(name, named)}" if named else f"takes no options, found {name!r}"
        raise OptionError(name, why)
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise ContractError(f"needs the option {name!r}")
    return {name: _convert(name, value, named[name]) if name in named else value for name, value in given.items()}


def _convert(name: str, value: Any, parameter: inspect.Parameter) -> Any:
    if parameter.annotation is Any or value is parameter.default:  # `x: int = None` is common, and None is then valid
        return value
    try:
        adapter = TypeAdapter(parameter.annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # models and dataclasses have a config of their own
        adapter = TypeAdapter(parameter.annotation)
    try:
        converted = adapter.validate_python(value)
    except PydanticUserError:  # something inside the annotation cannot be resolved
        return value
    except ValidationError as error:
        if isinstance(value, str):  # on a command line, a list is often written like this
            with suppress(ValidationError):
                return adapter.validate_python([part.strip() for part in value.split(",")])
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{part!r}]" for part in first["loc"] if part in _keys(value))
        found = f" (found {first['input']!r})" if place else f", found {value!r}"
        choices = re.findall("'([^']*)'", str(first.get("ctx", {}).get("expected")))  # those of a Literal
        hint = closest(str(first["input"]), choices)
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}{found}{hint}"
        raise OptionError(name, f"cannot take option {name!r}{place}: {message}") from error
    if expected := expected_instead(value, converted):
        raise OptionError(name, f"cannot take option {name!r}: input should be {expected}, found {value!r}")
    return converted


def expected_instead(value: Any, converted: Any) -> str:
    """What was expected, if pydantic took true for 1 or 1 for true, anywhere inside a value; else empty."""
    if isinstance(value, dict) and isinstance(converted, dict):
        value, converted = [*value.values()], [*converted.values()]
    if isinstance(value, list | tuple) and isinstance(converted, list | tuple):
        return next(filter(None, map(expected_instead, value, converted)), "")
    if not isinstance(value, int | float) or isinstance(value, bool) is isinstance(converted, bool):
        return ""
    return "a number" if isinstance(value, bool) else "true or false"


def _keys(value: Any) -> list[Any]:
    """All keys and indices inside a value, at any depth. Pydantic's error locations mix them with names of types."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    return [*value, *(key for item in value.values() for key in _keys(item))] if isinstance(value, dict) else []


def bind(kind: str, name: str, plugin: Any, options: dict[str, Any]) -> Any:
    """Apply checked options to a plugin.

    Returns:
        For a callback a function `(args) -> TrainerCallback`, for an environment a function that makes one, for a
        metric a `BoundMetric`, for an ORM or a PRM a `BoundScorer`, for a tuner a `BoundTuner`, else the function or
        the instance to call.

    Raises:
        ContractError: If a function that makes a metric does not return a pair.
    """
    if kind == "tuner":
        return BoundTuner(plugin, options)
    bound: Any = plugin
    if inspect.isclass(plugin):
        bound = plugin(**options)
    elif is_function(plugin) and options:
        bound = partial(plugin, **options)
        vars(bound).update(vars(plugin))  # a contract may have attributes, such as `generate`
    if kind == "callback":
        make: Any = partial(_make_callback, name, bound) if is_function(plugin) else lambda args: bound
        make.check_run = getattr(bound, "check_run", None)
        return make
    if kind == "environment":
        return partial(plugin, **options)  # one was made to see whether it takes its options
    if kind in ("orm", "prm"):
        return BoundScorer(bound, kind)
    if kind == "metric" and compares_texts(plugin):
        return BoundMetric(name, bound, None, True, getattr(bound, "max_new_tokens", 256))
    if kind == "metric":
        pair = bound() if is_function(plugin) else bound
        check_metric_pair(pair)
        return BoundMetric(name, *pair)
    return bound


def _make_callback(name: str, factory: Callable[[Any], Any], args: Any) -> Any:
    from transformers import TrainerCallback

    callback = factory(args)
    if not isinstance(callback, TrainerCallback):
        found = type(callback).__name__
        raise UserError(f"callback {name!r}: its function returned {found}, expected a TrainerCallback")
    return callback
