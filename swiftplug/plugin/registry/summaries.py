"""One line about a plugin, read from its source text: the module is found and parsed, never imported."""

import ast
import re
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

_MAX_HOPS = 4


def summary_of(value: str) -> str | None:
    """The first line of the documentation of an object, or else of the module that it stands in.

    Args:
        value: `package.module:attribute` or `path/to/file.py:attribute`.

    Returns:
        The line, or None where there is no source to read or nothing documented in it.
    """
    place, _, attribute = value.rpartition(":")
    source = Path(place) if place.endswith(".py") else _source_file(place)
    if source is None:
        return None
    return _summary_in(source, place, attribute.partition(".")[0], _MAX_HOPS)


def _summary_in(source: Path, module: str, name: str, hops: int) -> str | None:
    """The summary of the object called `name` in the source file of a module, following what that file imports."""
    try:
        text = source.read_text(encoding="utf-8")
        if defined := _documented(text, name):
            return _first_line(defined)
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):
        return None
    summary = None
    for index, node in enumerate(tree.body):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name:
                summary = ast.get_docstring(node)
            case ast.Assign(targets=[ast.Name(id=assigned)], value=value) if assigned == name:
                summary = _text_below(tree.body, index) or _docstring_of_call(tree, value)
            case ast.AnnAssign(target=ast.Name(id=assigned), value=value) if assigned == name:
                summary = _text_below(tree.body, index) or _docstring_of_call(tree, value)
            case ast.ImportFrom() if hops and (original := _imported_as(node, name)):
                origin = _absolute(node, module, is_package=source.name == "__init__.py")
                target = _source_file(origin)
                summary = _summary_in(target, origin, original, hops - 1) if target else None
    return _first_line(summary or ast.get_docstring(tree))


def _documented(text: str, name: str) -> str | None:
    """The docstring of a class or function at the top of a module, the rest of which is not parsed; None if unsure.

    Most plugins are such, and a listing parses the sources of all of them.
    """
    definition = re.search(
        rf'^(?:class|def|async def) {name}\b[^\n]*(?:\n[ \t)][^\n]*)*?:[ \t]*\n[ \t]+r?"""(?:.*?)"""$',
        text,
        re.MULTILINE | re.DOTALL,
    )
    if definition is None:
        return None
    try:
        (node,) = ast.parse(definition[0]).body
    except (SyntaxError, ValueError):
        return None
    return ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else None


def _text_below(body: list[ast.stmt], index: int) -> str | None:
    """The string that stands as a statement below an assignment, which documents it."""
    match body[index + 1 : index + 2]:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return text
    return None


def _docstring_of_call(tree: ast.Module, value: ast.expr | None) -> str | None:
    """For `name = Class(...)`, the docstring of the class where the module defines it."""
    match value:
        case ast.Call(func=ast.Name(id=called)):
            for node in tree.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == called:
                    return ast.get_docstring(node)
    return None


def _imported_as(node: ast.ImportFrom, name: str) -> str | None:
    return next((alias.name for alias in node.names if (alias.asname or alias.name) == name), None)


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The module that a `from ... import` statement inside `module` names."""
    if not node.level:
        return node.module or ""
    parents = module.split(".")
    parents = parents[: len(parents) - node.level + is_package]
    return ".".join([*parents, node.module] if node.module else parents)


def _first_line(text: str | None) -> str | None:
    return text.strip().partition("\n")[0].strip() or None if text else None


def _source_file(module: str) -> Path | None:
    """The source file of a module, found without importing its parents."""
    spec = _spec(module)
    return Path(spec.origin) if spec and spec.has_location and spec.origin and spec.origin.endswith(".py") else None


@cache
def _spec(module: str) -> ModuleSpec | None:
    parent = module.rpartition(".")[0]
    if not parent:
        return _find_spec(module, None)
    above = _spec(parent)
    return _find_spec(module, list(above.submodule_search_locations or [])) if above else None


def _find_spec(name: str, path: list[str] | None) -> ModuleSpec | None:
    """Ask the finders that `import` would ask (a package installed in editable mode has one of its own)."""
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except (ImportError, ValueError):
            continue
        if spec is not None:
            return spec
    return None
