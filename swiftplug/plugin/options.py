"""Options of plugins: the signature is the schema."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from swiftplug.errors import UserError, nearest


def check_options(
    options: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    function: Callable[..., Any] | None,
    of: str,
) -> dict[str, Any]:
    """Check options against the parameters that take them, and turn each into the annotated type.

    Args:
        options: What the user gave.
        parameters: The parameters that are options, by name; one of the sort `**kwargs` takes any other option.
        function: Where they come from, whose annotations count; None where there are none.
        of: The plugin and the place that chose it, for messages: `train.yaml: loss: loss 'focal' of acme 1.0`.

    Returns:
        The options as the plugin takes them, defaults not filled in.

    Raises:
        UserError: For an option that the plugin does not take, one of the wrong type, or one that is missing.
    """
    named = {name: it for name, it in parameters.items() if it.kind is not inspect.Parameter.VAR_KEYWORD}
    takes_any = len(named) < len(parameters)
    annotations = _annotations(function) if function else {}
    checked = {}
    for name, value in options.items():
        if name in named:
            checked[name] = _checked(value, annotations.get(name, Any), named[name].default, f"{of}: option {name!r}")
        elif takes_any:
            checked[name] = value
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
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{part!r}]" for part in first["loc"] if part in _keys(value))
        found = f" (found {first['input']!r})" if place else f", found {value!r}"
        raise UserError(f"{where}{place}: {_lower(first['msg'])}{found}") from error


def _keys(value: Any) -> list[Any]:
    """The keys and indices that lead into a value; pydantic mixes them with names of types."""
    match value:
        case dict():
            return [*value, *(key for item in value.values() for key in _keys(item))]
        case list() | tuple():
            return [*range(len(value)), *(key for item in value for key in _keys(item))]
        case _:
            return []


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function; Any for those that cannot be resolved (imported for type checkers only)."""
    target = inspect.unwrap(function)
    resolved = {}
    for name, annotation in inspect.get_annotations(target).items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, getattr(target, "__globals__", {}))
            except Exception:
                annotation = Any
        resolved[name] = annotation
    return resolved
