"""One line about a plugin, searched in its source text: importing or even parsing every module would take too long."""

import re
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from swiftplug.formatting import printable

_MAX_HOPS = 3
_DOCSTRING = r'[rR]?("""|\'\'\'|"|\')\s*+(?!\1)(?P<line>.+?)\s*(?:\1|\n)'
# Lines that continue in the next one: they do not end in a colon, and the next one is indented or closes a bracket.
_CONTINUED = r"(?:[^\n#]*(?<!:)\n(?=[ \t)\]}]))*"
_DEFINITION = re.compile(r"^(?:class|def|async def) (\w+)", re.M)
_BODY = re.compile(rf"{_CONTINUED}[^\n#]*:[ \t]*(?:#[^\n]*)?\n[ \t]+{_DOCSTRING}")
_BELOW = re.compile(rf"{_CONTINUED}[^\n]*\n{_DOCSTRING}")


def summary_of(value: str) -> str | None:
    """The first line of the docstring of an object, or else of its module.

    Args:
        value: `package.module:attribute` or `path/to/file.py:attribute`.

    Returns:
        The line; None if there is no source to read or no docstring in it.
    """
    module, _, attribute = value.rpartition(":")
    line = _summary(module, attribute.partition(".")[0], _MAX_HOPS)
    return line and printable(line)


def _summary(module: str, name: str, hops: int) -> str | None:
    """The summary of what a module calls `name`, there or in the module that it imports it from."""
    _, text = read_source(module)
    if line := _defined(text, name):
        return line
    if assigned := re.search(rf"^{re.escape(name)}\b *(?::[^\n=]*)?= *", text, re.M):
        below = _BELOW.match(text, assigned.end())
        call = re.compile(r"(\w+)\(").match(text, assigned.end())
        if line := below["line"] if below else _defined(text, call[1]) if call else None:
            return line
    for dots, source, names in re.findall(r"^from +(\.*)([\w.]*) +import +(\([^)]*\)|[^\n]*)", text, re.M):
        for original, alias in re.findall(r"(\w+)(?: +as +(\w+))?", names):
            is_it = hops and (alias or original) == name
            if is_it and (line := _summary(origin_of(module, len(dots), source), original, hops - 1)):
                return line
    documented = re.match(rf"(?:\s|#[^\n]*\n)*{_DOCSTRING}", text)
    return documented["line"] if documented else None


def _defined(text: str, name: str) -> str | None:
    """The first line of the docstring of a class or function that a module defines."""
    bodies = (_BODY.match(text, found.end()) for found in _DEFINITION.finditer(text) if found[1] == name)
    return next((body["line"] for body in bodies if body), None)


def read_source(module: str) -> tuple[Path | None, str]:
    """The file of a module, which is not imported, and its text; None and no text if there is no source to read.

    Args:
        module: `package.module`, or the path of a Python file.
    """
    try:
        spec = None if module.endswith(".py") else _find_spec(module)
        file = Path(spec.origin or "") if spec else Path(module)
        return (file, file.read_text(encoding="utf-8")) if file.suffix == ".py" else (None, "")
    except (OSError, ImportError, ValueError):  # an unreadable file, or a name that a finder rejects
        return None, ""


def origin_of(module: str, dots: int, source: str) -> str:
    """The full name of the module in `from ..source import name`.

    Args:
        module: The module that imports.
        dots: The number of dots.
        source: What follows them.
    """
    spec = _find_spec(module) if dots else None
    is_package = spec is not None and spec.submodule_search_locations is not None
    up = dots - is_package
    package = module.split(".")[: -up or None] if dots else []
    return ".".join(filter(None, [*package, source]))


@cache
def _find_spec(module: str) -> ModuleSpec | None:
    """The spec of a module. The finders of `import` are asked directly: `find_spec` would import the packages above."""
    package = module.rpartition(".")[0]
    above = _find_spec(package) if package else None
    if package and above is None:
        return None
    folders = list(above.submodule_search_locations or []) if above else None
    return next(filter(None, (finder.find_spec(module, folders) for finder in sys.meta_path)), None)
