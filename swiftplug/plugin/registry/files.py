"""`--plugin FILE.py`: run a file, and collect the plugins that its decorators and module-level tables name."""

import importlib.util
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache, partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from swiftplug.errors import UserError, broken_link
from swiftplug.plugin import register
from swiftplug.plugin.register import Registered
from swiftplug.plugin.registry.contracts import compares_texts, is_function
from swiftplug.plugin.registry.errors import describe_error_in
from swiftplug.plugin.registry.finder import FROM_FILE, FoundPlugin
from swiftplug.plugin.registry.kinds import KINDS
from swiftplug.plugin.tools_format import AgentKeyword, as_text

_SYSTEM = "\0"  # stands for the row's system message


def load_file(path: str | Path) -> tuple[FoundPlugin, ...]:
    """Run a plugin file and collect its plugins.

    Its folder goes to the end of `sys.path`, so that it can import the files beside it. A file runs once
    per process, like a module: the modules that it imports would not register anything a second time.

    Args:
        path: The Python file.

    Returns:
        What its decorators registered, what its own tables hold, and what it added to those of `swiftplug.plugin`.

    Raises:
        UserError: If there is no such file, it fails, it has no plugins, or two of one kind have the same name.
    """
    path = Path(path).expanduser()  # a shell leaves the ~ of --plugin=~/FILE.py to the program
    shown, path = str(path), path.resolve()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--plugin {shown}: there is no such Python file{broken_link(shown)}")
    return _load(path, shown, path.read_bytes())


@cache
def _load(path: Path, shown: str, content: bytes) -> tuple[FoundPlugin, ...]:
    """The plugins of a file; its content is a parameter because a changed file must run again."""
    tables = {table: kind.name for kind in KINDS.values() for table in kind.tables}
    before = {table: getattr(register, table).copy() for table in tables}
    registered_before = len(register.registered)
    module = _run(path, shown)
    for table in register.NOT_IN_SWIFTPLUG:
        if isinstance(vars(module).get(table), dict):
            raise UserError(f"{shown}:{_line_of(table, path)}: {register.swift_counterpart(table)}")
    registered = register.registered[registered_before:]
    for table, kind in tables.items():
        shared, own = getattr(register, table), vars(module).get(table)
        added = [*_added(shared, before[table])]
        if own is not None and own is not shared:
            _check_table(own, type(shared), f"{shown}:{_line_of(table, path)}: {table}")
            added += _added(own, type(shared)())
        for name, plugin in added:
            registered.append(Registered(kind, name, _as_here(kind, plugin), always_on=kind == "callback"))
    if not registered:
        raise UserError(f"--plugin {shown}: it registers no plugin and has no table of plugins")
    unique: dict[tuple[str, str], FoundPlugin] = {}
    for kind, name, plugin, always_on in registered:
        value = f"{shown}:{definition_of(plugin).__qualname__}"
        found = FoundPlugin(kind, name, FROM_FILE, version="", value=value, obj=plugin, always_on=always_on)
        first = unique.setdefault((kind, name), found)  # a file may both decorate a plugin and put it into a table
        if inspect.unwrap(first.obj) is not inspect.unwrap(plugin):
            raise UserError(f"--plugin {shown}: two plugins are called {kind} {name!r}")
    return tuple(unique.values())


def _run(path: Path, shown: str) -> ModuleType:
    import hashlib  # only here: it would slow down `list-plugins`

    name = f"swiftplug_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "swift":
            hint = "; what plugin files import from SWIFT is in swiftplug.plugin here"
        raise UserError(f"{describe_error_in(path, shown, error)}{hint}") from error
    return module


def _added(table: Any, before: Any) -> Iterator[tuple[str, Any]]:
    """The names and objects that a table holds now and did not hold before."""
    if isinstance(table, dict):
        for name, plugin in table.items():
            if before.get(name) is not plugin:
                yield name, plugin
    else:
        counts: Counter[str] = Counter()
        for callback in table:
            if not any(callback is old for old in before):
                name = definition_of(callback).__name__
                counts[name] += 1
                yield f"{name}_{counts[name]}" if counts[name] > 1 else name, callback


def _check_table(table: Any, expected: type, where: str) -> None:
    if not isinstance(table, expected):
        content = "callbacks" if expected is list else "plugins by name"
        raise UserError(f"{where} is a {type(table).__name__}, expected a {expected.__name__} of {content}")
    wrong = [key for key in table if not isinstance(key, str)] if isinstance(table, dict) else []
    if wrong:
        raise UserError(f"{where} has the key {wrong[0]!r}, expected the name of a plugin")


def _line_of(table: str, path: Path) -> int:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return next((number for number, line in lines if re.match(rf"{table}\b.*=", line)), 1)


def _as_here(kind: str, plugin: Any) -> Any:
    """A plugin of a table in the form that its kind has here; SWIFT 3 has several, which differ by version."""
    if kind == "loss" and isinstance(plugin, dict) and "loss_func" in plugin:
        return plugin["loss_func"]
    if kind == "tools":
        return _tools_format(plugin)
    if kind in ("orm", "prm"):
        cls: Any = plugin if inspect.isclass(plugin) else type(plugin)
        owner = next((base for base in cls.__mro__ if {"infer", "__call__"} & vars(base).keys()), None)
        if owner and "infer" in vars(owner) and "__call__" not in vars(owner):
            infer = vars(owner)["infer"]
            cls.__call__ = _with_self(infer.__func__) if isinstance(infer, staticmethod) else infer
    if kind == "metric" and isinstance(plugin, tuple) and len(plugin) == 2 and plugin[1] is None:
        compute: Any = plugin[0]
        if compares_texts(compute) or (is_function(compute) and len(_required(compute)) == 2):
            compute.generate = True
            return compute
    return plugin


def _with_self(function: Any) -> Any:
    """A static method as a method: Python finds the signature of an instance in `__call__` without its first one."""

    @wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    vars(call)["__signature__"] = signature.replace(parameters=[own, *signature.parameters.values()])
    return call


def _tools_format(plugin: Any) -> Any:
    """A tools format of a table: a function, or a pair of one and the words that begin calls and results.

    In SWIFT 3.0 the function gets the descriptions as texts, later as objects, and later still the row's system message
    too. Here that message stands before what the format writes.
    """
    function, keywords = plugin if isinstance(plugin, tuple) and len(plugin) == 2 else (plugin, None)
    if not is_function(function):
        return plugin
    system = (_SYSTEM,) if len(_required(function)) == 3 else ()

    @wraps(function)
    def write(tool_names: list[str], tool_descs: list[Any], **options: Any) -> Any:
        try:
            text = function(tool_names, tool_descs, *system, **options)
        except (AttributeError, TypeError) as error:
            if not re.search("dict|slice", str(error)):  # it did not take an object for a text
                raise
            text = function(tool_names, [as_text(desc) for desc in tool_descs], *system, **options)
        if system:
            text = text.removeprefix(_SYSTEM).lstrip("\n")
            if _SYSTEM in text:
                raise UserError(
                    f"tools format {definition_of(function).__name__}: writes the system message after other text"
                )
        return text

    if system:
        parameters = [*inspect.signature(function).parameters.values()]
        vars(write)["__signature__"] = inspect.Signature([*parameters[:2], *parameters[3:]])
    if keywords is not None:
        words = AgentKeyword(**(keywords if isinstance(keywords, Mapping) else vars(keywords)))
        vars(write).update(format_calls=words.format_calls, format_results=words.format_results)
    return write


def _required(function: Any) -> list[str]:
    """The names of the parameters that a function must be given by position."""
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [it.name for it in parameters if it.kind in positional and it.default is it.empty]


def definition_of(plugin: Any) -> Any:
    """The class or function that a plugin is, is made from, or is an instance of."""
    if isinstance(plugin, tuple) and plugin:
        plugin = plugin[0]
    if isinstance(plugin, partial):
        plugin = plugin.func
    return inspect.unwrap(plugin) if inspect.isclass(plugin) or inspect.isroutine(plugin) else type(plugin)
