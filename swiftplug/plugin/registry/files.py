"""`--plugin FILE.py`: a file of plugins, named by decorators or by module-level tables."""

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from swiftplug.errors import UserError
from swiftplug.plugin import register, tables
from swiftplug.plugin.register import Registered
from swiftplug.plugin.registry.causes import cause_in
from swiftplug.plugin.registry.discovery import FROM_FILE, FoundPlugin
from swiftplug.plugin.registry.sources import origin_of


class FilePlugin(NamedTuple):
    """A plugin of a file.

    Attributes:
        found: What a listing shows of it.
        plugin: The object itself.
        active: Whether it acts without being named, as `extra_callbacks` do.
    """

    found: FoundPlugin
    plugin: Any
    active: bool = False


def load_file(path: str | Path) -> Sequence[FilePlugin]:
    """Run a file of plugins and see what it brought.

    The file's folder goes to the end of `sys.path`, so that the file can import what lies beside it. A file runs once
    in a process, as a module does: what it imports would not register anything a second time.

    Args:
        path: The Python file.

    Returns:
        What its decorators registered, what its own tables hold, and what it wrote into those of `swiftplug.plugin`.

    Raises:
        UserError: If there is no such file, it fails, it brings nothing, or it names two plugins of a kind alike.
    """
    shown, path = str(path), Path(path).resolve()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--plugin {shown}: there is no such Python file")
    return _load(path, shown, path.read_bytes())


@cache
def _load(path: Path, shown: str, content: bytes) -> tuple[FilePlugin, ...]:
    """What a file of this content brings."""
    shared = {name: getattr(tables, name).copy() for name in tables.KIND_OF_TABLE}
    before = len(register.registered)
    module = _run(path, shown)
    brought = [(entry, False) for entry in register.registered[before:]]
    for table, kind in tables.KIND_OF_TABLE.items():
        common, own = getattr(tables, table), vars(module).get(table)
        entries = _added(common, shared[table])
        if own is not None and own is not common:
            _check_table(own, type(common), f"{shown}:{_line_of(table, path)}: {table}")
            entries += _added(own, type(common)())
        if kind == "tools":
            entries = [(name, _given_texts(plugin)) for name, plugin in entries]
        brought += [(Registered(kind, name, plugin), kind == "callback") for name, plugin in entries]
    if not brought:
        raise UserError(f"--plugin {shown}: it registers no plugin and has no table of plugins")
    return tuple(_file_plugin(entry, shown, active) for entry, active in _unique(brought, shown))


def _run(path: Path, shown: str) -> ModuleType:
    import hashlib  # listing plugins should not wait for it

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
            hint = "; what SWIFT's plugin files import comes from swiftplug.plugin here"
        raise UserError(f"{cause_in(error, path, shown)}{hint}") from error
    return module


def _added(table: Any, before: Any) -> list[tuple[str, Any]]:
    """The names and objects that a table holds and did not hold before."""
    if isinstance(table, dict):
        new = {name: plugin for name, plugin in table.items() if before.get(name) is not plugin}
        return [
            (name, it["loss_func"] if isinstance(it, dict) and "loss_func" in it else it) for name, it in new.items()
        ]
    callbacks = [it for it in table if not any(it is old for old in before)]
    names = [origin_of(it).__name__ for it in callbacks]
    # Two of one class: the second and later ones are numbered.
    counts = [names[:index].count(name) for index, name in enumerate(names)]
    return [(f"{name}_{n + 1}" if n else name, it) for name, n, it in zip(names, counts, callbacks, strict=True)]


def _given_texts(plugin: Any) -> Any:
    """A tools format of the older style, which joins descriptions as texts: objects become JSON before it is called."""
    if not inspect.isroutine(plugin):
        return plugin

    @wraps(plugin)
    def format_texts(tool_names: list[str], tool_descs: list[Any], **options: Any) -> Any:
        texts = [it if isinstance(it, str) else json.dumps(it, ensure_ascii=False) for it in tool_descs]
        return plugin(tool_names, texts, **options)

    return format_texts


def _check_table(table: Any, expected: type, where: str) -> None:
    if not isinstance(table, expected):
        of = "of callbacks" if expected is list else "of plugins by name"
        raise UserError(f"{where} is a {type(table).__name__}, expected a {expected.__name__} {of}")
    if isinstance(table, dict):
        for name in table:
            if not isinstance(name, str):
                raise UserError(f"{where} has the key {name!r}, expected the name of a plugin")


def _unique(brought: list[tuple[Registered, bool]], shown: str) -> Iterable[tuple[Registered, bool]]:
    """The plugins, each once: a file may both decorate one and put it into a table."""
    unique: dict[tuple[str, str], tuple[Registered, bool]] = {}
    for entry, active in brought:
        kept, _ = unique.setdefault((entry.kind, entry.name), (entry, active))
        if inspect.unwrap(kept.plugin) is not inspect.unwrap(entry.plugin):
            raise UserError(f"--plugin {shown}: two plugins are called {entry.kind} {entry.name!r}")
    return unique.values()


def _file_plugin(entry: Registered, shown: str, active: bool) -> FilePlugin:
    value = f"{shown}:{origin_of(entry.plugin).__qualname__}"
    return FilePlugin(FoundPlugin(entry.kind, entry.name, FROM_FILE, "", value), entry.plugin, active)


def _line_of(table: str, path: Path) -> int:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return next((number for number, line in lines if re.match(rf"{table}\b.*=", line)), 1)
