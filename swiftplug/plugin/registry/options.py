"""Options of plugins: the signature is the schema."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from swiftplug.errors import UserError, nearest
from swiftplug.plugin.registry.contracts import CALLS, TUNER_CALLS, Call, is_function


class OptionSource(NamedTuple):
    """Where the options of a plugin are declared.

    Attributes:
        parameters: Those parameters that are options; one of the sort `**kwargs` takes any other option.
        function: The function that has them; None where a plugin takes no options.
        misplaced: Parameters of the function that are no options only because they are not keyword-only.
    """

    parameters: dict[str, inspect.Parameter]
    function: Callable[..., Any] | None
    misplaced: frozenset[str] = frozenset()


def option_source(kind: str, plugin: Any) -> OptionSource:
    """The options of a plugin: of a class those of `__init__`, of a function its keyword-only parameters, of a tuner
    those of `prepare_model`; an instance takes none.

    Args:
        kind: A key of `KINDS`.
        plugin: An object that fits the kind's contract.
    """
    if kind == "tuner":
        return _keyword_only(plugin.prepare_model, TUNER_CALLS["prepare_model"], catches_options=True)
    if inspect.isclass(plugin):
        return _of_constructor(plugin)
    if is_function(plugin):
        # What `**kwargs` of these catches is for later versions of their contract.
        return _keyword_only(plugin, CALLS.get(kind, Call(())), catches_options=kind not in ("loss", "prm", "orm"))
    return OptionSource({}, None)


def _of_constructor(cls: Any) -> OptionSource:
    if cls.__init__ is object.__init__:
        return OptionSource({}, None)
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    options = {it.name: it for it in parameters if it.kind not in (it.VAR_POSITIONAL, it.POSITIONAL_ONLY)}
    return OptionSource(options, cls.__init__)


def _keyword_only(function: Callable[..., Any], call: Call, catches_options: bool) -> OptionSource:
    """The keyword-only parameters of a function, without those that its contract passes."""
    options, misplaced = {}, set()
    for index, it in enumerate(inspect.signature(function).parameters.values()):
        passed = it.name in (*call.keywords, *call.optional) or index < len(call.positional)
        if (it.kind is it.KEYWORD_ONLY and not passed) or (it.kind is it.VAR_KEYWORD and catches_options):
            options[it.name] = it
        elif it.kind is it.POSITIONAL_OR_KEYWORD and not passed:
            misplaced.add(it.name)
    return OptionSource(options, function, frozenset(misplaced))


def check_options(options: Mapping[str, Any], source: OptionSource, of: str) -> dict[str, Any]:
    """Check the options that a user gave, and turn each into the annotated type.

    Args:
        options: What was given.
        source: Where the plugin declares its options.
        of: The plugin and the place that chose it, for messages: `train.yaml: loss: loss 'focal' of acme 1.0`.

    Returns:
        The options as the plugin takes them, defaults not filled in.

    Raises:
        UserError: For an option that the plugin does not take, one of the wrong type, or one that is missing.
    """
    named = {name: it for name, it in source.parameters.items() if it.kind is not inspect.Parameter.VAR_KEYWORD}
    takes_any = len(named) < len(source.parameters)
    annotations = _annotations(source.function) if source.function else {}
    checked = {}
    for name, value in options.items():
        if name in named:
            checked[name] = _checked(value, annotations.get(name, Any), named[name].default, f"{of}: option {name!r}")
        elif takes_any:
            checked[name] = value
        elif name in source.misplaced:
            raise UserError(
                f"{of} takes no option {name!r}: its function has that parameter, but not behind a `*`, as options are"
            )
        elif named:
            raise UserError(f"{of} takes no option {name!r}{nearest(name, named)}")
        else:
            raise UserError(f"{of} takes no options, found {name!r}")
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise UserError(f"{of} needs the option {name!r}")
    return checked


def _checked(value: Any, annotation: Any, default: Any, where: str) -> Any:
    if annotation is Any or value is default:  # `x: int = None` is common, and its None is no mistake
        return value
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # models and dataclasses bring a config of their own
        adapter = TypeAdapter(annotation)
    try:
        return adapter.validate_python(value)
    except PydanticUserError:  # it names, deep within, what cannot be resolved
        return value
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{part!r}]" for part in first["loc"] if part in _keys(value))
        found = f" (found {first['input']!r})" if place else f", found {value!r}"
        raise UserError(f"{where}{place}: {first['msg'][:1].lower()}{first['msg'][1:]}{found}") from error


def _keys(value: Any) -> list[Any]:
    """The keys and indices that lead into a value; pydantic mixes them with names of types."""
    match value:
        case dict():
            return [*value, *(key for item in value.values() for key in _keys(item))]
        case list() | tuple():
            return [*range(len(value)), *(key for item in value for key in _keys(item))]
        case _:
            return []


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function; Any for those that cannot be resolved (imported for type checkers only)."""
    target = inspect.unwrap(function)
    while isinstance(target, partial):
        target = inspect.unwrap(target.func)
    resolved = {}
    for name, annotation in inspect.get_annotations(target).items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, getattr(target, "__globals__", {}))
            except Exception:  # whatever evaluating it may raise: it is checked by the plugin, or by nobody
                annotation = Any
        resolved[name] = annotation
    return resolved
