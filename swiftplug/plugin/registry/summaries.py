"""One line about a plugin, searched in its source text: importing or even parsing every module would take too long."""

import re
from importlib.util import find_spec
from pathlib import Path

_MAX_HOPS = 3
_DOCSTRING = r'[rR]?("""|\'\'\'|"|\')\s*+(?!\1)(?P<line>.+?)\s*(?:\1|\n)'
# Lines that continue in the next one: they do not end in a colon, and the next one is indented or closes a bracket.
_CONTINUED = r"(?:[^\n#]*(?<!:)\n(?=[ \t)\]}]))*"


def summary_of(value: str) -> str | None:
    """The first line of the docstring of an object, or else of its module.

    Args:
        value: `package.module:attribute` or `path/to/file.py:attribute`.

    Returns:
        The line; None if there is no source to read or no docstring in it.
    """
    module, _, attribute = value.rpartition(":")
    return _summary(module, re.escape(attribute.partition(".")[0]), _MAX_HOPS)


def _summary(module: str, name: str, hops: int) -> str | None:
    """The summary of what a module calls `name`, there or in the module that it imports it from."""
    file = Path(module) if module.endswith(".py") else _source_file(module)
    try:
        text = file.read_text(encoding="utf-8") if file else ""
    except (OSError, ValueError):
        return None
    if line := _defined(text, name):
        return line
    if assigned := re.search(rf"^{name}\b *(?::[^\n=]*)?= *", text, re.M):
        below = re.compile(rf"{_CONTINUED}[^\n]*\n{_DOCSTRING}").match(text, assigned.end())
        call = re.compile(r"(\w+)\(").match(text, assigned.end())
        if line := below["line"] if below else _defined(text, call[1]) if call else None:
            return line
    for dots, source, names in re.findall(r"^from +(\.*)([\w.]*) +import +(\([^)]*\)|[^\n]*)", text, re.M):
        for original, alias in re.findall(r"(\w+)(?: +as +(\w+))?", names):
            if hops and (alias or original) == name:
                up = len(dots) - (file is not None and file.name == "__init__.py")
                package = module.split(".")[: -up or None] if dots else []
                if line := _summary(".".join(filter(None, [*package, source])), original, hops - 1):
                    return line
    documented = re.match(rf"(?:\s|#[^\n]*\n)*{_DOCSTRING}", text)
    return documented["line"] if documented else None


def _defined(text: str, name: str) -> str | None:
    """The first line of the docstring of a class or function that a module defines."""
    definition = rf"^(?:class|def|async def) {name}\b{_CONTINUED}[^\n#]*:[ \t]*(?:#[^\n]*)?\n[ \t]+{_DOCSTRING}"
    found = re.search(definition, text, re.M)
    return found["line"] if found else None


def _source_file(module: str) -> Path | None:
    """The source file of a module, found without importing the packages above it."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if rest:
        stems = [Path(folder, *rest) for folder in spec.submodule_search_locations or []]
        files = [file for stem in stems for file in (stem / "__init__.py", stem.with_name(f"{stem.name}.py"))]
    else:
        files = [Path(spec.origin or "")]
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)
