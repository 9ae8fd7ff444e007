"""The options that a plugin declares by its signature."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from swiftplug.plugin.registry.contracts import CONTRACTS, Call, is_function
from swiftplug.plugin.rewards import ORM


class DeclaredOptions(NamedTuple):
    """The options that a plugin declares.

    Attributes:
        named: Its options by name, annotations resolved.
        any_other: Whether it takes any other option too, by `**kwargs`.
        misplaced: Parameters that would be options if they were keyword-only.
    """

    named: dict[str, inspect.Parameter]
    any_other: bool = False
    misplaced: frozenset[str] = frozenset()


def declared_options(kind: str, plugin: Any) -> DeclaredOptions:
    """The options of a plugin that fits its contract.

    Those of a class are the parameters of `__init__`, those of a function its keyword-only parameters, those of a tuner
    the keyword-only parameters of `prepare_model`. An instance takes none.
    """
    constructed = inspect.isclass(plugin) and kind != "tuner"
    if kind == "tuner":
        function, call = plugin.prepare_model, CONTRACTS[kind]["prepare_model"]
    elif constructed:
        function, call = plugin.__init__, Call(("self",))
    else:
        function, call = plugin, CONTRACTS[kind].get("__call__", Call())
    if not is_function(function) or function in (object.__init__, ORM.__init__):
        return DeclaredOptions({})
    annotations = _annotations(function)
    parameters = [
        each.replace(annotation=annotations.get(each.name, Any))
        for each in inspect.signature(function).parameters.values()
    ]
    return options_among(parameters, kind, call, constructed=constructed)


def options_among(
    parameters: Iterable[inspect.Parameter], kind: str, call: Call, *, constructed: bool
) -> DeclaredOptions:
    """Those parameters that are options.

    Args:
        parameters: The parameters of the function that gets the options.
        kind: The kind of plugin.
        call: What else it is called with.
        constructed: Whether it is the `__init__` of a class.
    """
    named, any_other, misplaced = {}, False, set()
    for index, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_KEYWORD:
            # In a loss, an ORM or a PRM it leaves room for later versions of the contract.
            any_other = constructed or kind not in ("loss", "orm", "prm")
        elif parameter.name in (*call.keywords, *call.optional) or parameter.kind not in (
            parameter.KEYWORD_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        ):
            continue
        elif parameter.kind is parameter.KEYWORD_ONLY or (constructed and index > 0):
            named[parameter.name] = parameter
        elif index >= len(call.positional):
            misplaced.add(parameter.name)
    return DeclaredOptions(named, any_other, frozenset(misplaced))


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function; Any where one cannot be resolved, such as an import for type checkers only."""
    target = inspect.unwrap(function)
    while isinstance(target, partial):
        target = inspect.unwrap(target.func)
    resolved = inspect.get_annotations(target)
    for name, annotation in resolved.items():
        if isinstance(annotation, str):
            try:
                resolved[name] = eval(annotation, getattr(target, "__globals__", {}))
            except (ImportError, NameError, AttributeError, TypeError, SyntaxError):  # only the plugin can check it
                resolved[name] = Any
    return resolved
