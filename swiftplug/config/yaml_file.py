"""YAML as a config uses it: plain values, line numbers, no duplicate keys, and numbers as in YAML 1.2."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from swiftplug.config.keys import KeySource, KeySources, Path
from swiftplug.errors import UserError, broken_link, closest, nearest

_TAG = "tag:yaml.org,2002:"
_INT, _FLOAT, _MERGE = f"{_TAG}int", f"{_TAG}float", f"{_TAG}merge"
_PLAIN = {f"{_TAG}{name}" for name in ("map", "seq", "str", "float", "bool", "null")}
_DIGITS = "-+.0123456789"
_INT_1_2 = re.compile(r"[-+]?[0-9]+$|0o[0-7]+$|0x[0-9a-fA-F]+$")
_FLOAT_1_2 = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
# PyYAML reads plain scalars as in YAML 1.1: 1e-4 is text, 010 is 8, 1:30 is 90, and 2024-01-01 is a date.
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in {*_PLAIN, _MERGE} - {_FLOAT}]
    + ([(_INT, _INT_1_2), (_FLOAT, _FLOAT_1_2)] if first in _DIGITS else [])
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_CONSTRUCTORS: dict[str | None, Any] = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _PLAIN
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS
    yaml_constructors = _CONSTRUCTORS

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Read a mapping, whose keys must be text and differ from each other."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                found = f"{key.value} " if isinstance(key, yaml.ScalarNode) else ""
                raise _error(key, f"key {found}is not text; put it in quotes")
            if key.value in lines:
                raise _error(key, f"key {key.value!r} is given twice, first on line {lines[key.value]}")
            lines[key.value] = _line(key)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make the value of a node; each alias gets its own copy, so that no two parts of a config share an object."""
        if node in self.recursive_objects:
            raise _error(node, "an alias that contains itself")
        try:
            value = super().construct_object(node, deep=True)
        except (KeyError, ValueError):
            raise _error(node, f"{node.value!r} is not a valid {node.tag.removeprefix(_TAG)}") from None
        del self.constructed_objects[node]
        return value


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _refuse(loader: _Loader, node: yaml.Node) -> None:
    raise _error(node, f"unknown tag {node.tag!r}; a config has plain values only")


_Loader.add_constructor(_INT, _construct_int)
_Loader.add_constructor(None, _refuse)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write an object that occurs twice in full both times."""
        return True


# Text that YAML 1.1 or 1.2 would read as a number is written in quotes.
_Dumper.add_implicit_resolver(_INT, _INT_1_2, list(_DIGITS))
_Dumper.add_implicit_resolver(_FLOAT, _FLOAT_1_2, list(_DIGITS))


def read_config(path: str) -> tuple[dict[str, Any], KeySources]:
    """Read a config file.

    Returns:
        Its keys, and the line of each value.

    Raises:
        UserError: It cannot be read, is not YAML, or is not a mapping.
    """
    value, lines = _parse(_read_text(path), lambda line: f"{path}:{line}")
    if value is None:
        raise UserError(f"{path}: is empty, expected keys such as model and dataset")
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of keys such as model and dataset, found {describe(value)}")
    return value, KeySources({key: KeySource(f"{path}:{line}", in_file=True) for key, line in lines.items()})


def _read_text(path: str) -> str:
    try:
        return FilePath(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        folder = FilePath(path).parent
        configs = [str(file) for ending in ("yaml", "yml") for file in folder.glob(f"*.{ending}")]
        runs = [str(file.parent) for file in folder.glob("*/config.yaml")]
        hint = broken_link(path) or closest(path, [*configs, *runs]) or nearest(path, configs)
        raise UserError(f"{path}: no such config{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def read_value(text: str, place: str) -> Any:
    """Read the YAML of one value.

    Raises:
        UserError: It is not YAML; the message begins with `place`.
    """
    return _parse(text, lambda line: place)[0]


def write_yaml(value: Any) -> str:
    """YAML that reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def write_inline(value: Any) -> str:
    """YAML of one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def describe(value: Any) -> str:
    """A value as an error message shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value)


def _parse(text: str, place: Callable[[int], str]) -> tuple[Any, dict[Path, int]]:
    """The value in a YAML document, and the line of each of its parts; `place` names a line in errors."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = loader.construct_document(node) if node else None
        return value, dict(_lines(node, ())) if node else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        kind = "" if isinstance(error, ConstructorError) else "not YAML: "
        raise UserError(f"{place(mark.line + 1 if mark else 1)}: {kind}{error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{place(line)}: not YAML: the character {text[error.position]!r} is not allowed") from error


def _lines(node: yaml.Node, path: Path) -> Iterator[tuple[Path, int]]:
    """The line of everything in a node; where a merge brought a key that is also given, the given one comes last."""
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            yield (*path, key.value), _line(key)
            yield from _lines(item, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), _line(item)
            yield from _lines(item, (*path, index))


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _error(node: yaml.Node, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)
