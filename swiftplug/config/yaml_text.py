"""YAML that keeps line numbers, refuses duplicate keys and reads `1e-4` as the number it is."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import yaml

from swiftplug.config.tree import Path
from swiftplug.errors import UserError

_FLOAT = "tag:yaml.org,2002:float"
_MERGE = "tag:yaml.org,2002:merge"
_DROPPED = {_FLOAT, "tag:yaml.org,2002:timestamp"}
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}
_YAML_1_2_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
# PyYAML resolves plain scalars as YAML 1.1 did: 1e-4 is a string to it, 2024-01-01 a date. A revision may look like a
# date, and a learning rate is written with an exponent.
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    + ([(_FLOAT, _YAML_1_2_FLOAT)] if first in "-+.0123456789" else [])
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS  # so that a text which looks like a number is written in quotes

    def ignore_aliases(self, data: Any) -> bool:
        return True


class YamlText(NamedTuple):
    """A YAML document.

    Attributes:
        value: What it says.
        lines: The line, counted from 1, of everything in it, by path.
    """

    value: Any
    lines: dict[Path, int]


def read_yaml(text: str, place: Callable[[int], str]) -> YamlText:
    """Parse one document.

    Args:
        text: The YAML.
        place: What errors call a line, given its number.

    Raises:
        UserError: It is not YAML, has a key twice, or a tag or a key that is not plain.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        builder = _Builder(loader, place)
        return YamlText(builder.build(node, ()) if node else None, builder.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{place(mark.line + 1 if mark else 1)}: not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{place(line)}: not YAML: the character {text[error.position]!r} has no place in it"
        ) from error


def read_value(text: str, place: str) -> Any:
    """The value that a piece of YAML says.

    Raises:
        UserError: It is not YAML; the message begins with `place`.
    """
    return read_yaml(text, lambda line: place).value


def write_yaml(value: Any) -> str:
    """YAML that `read_yaml` reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Builder:
    """Makes values of nodes, and notes the line of each.

    Attributes:
        lines: The line of each part built so far.
    """

    def __init__(self, loader: _Loader, place: Callable[[int], str]) -> None:
        self.lines: dict[Path, int] = {}
        self._loader = loader
        self._place = place
        self._open: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: Path) -> Any:
        """The value of a node; an alias is built anew, so that no two parts of a config share an object."""
        if node.tag not in _PLAIN:
            raise self._error(node, f"unknown tag {node.tag!r}; a config has plain values only")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node in self._open:
            raise self._error(node, "an alias that holds itself")
        self._open.append(node)
        value: Any
        if isinstance(node, yaml.MappingNode):
            value = self._mapping(node, path)
        else:
            value = []
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
                value.append(self.build(item, (*path, index)))
        self._open.pop()
        return value

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for source in self._merged(node):
            value = {**self.build(source, path), **value}
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                continue
            key, line = self._key(key_node), key_node.start_mark.line + 1
            if key in seen:
                raise self._error(key_node, f"key {key!r} is given twice, first on line {seen[key]}")
            seen[key] = line
            self._forget((*path, key))
            self.lines[(*path, key)] = line
            value[key] = self.build(value_node, (*path, key))
        return value

    def _merged(self, node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
        """The mappings that `<<` brings in, those that win first."""
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    if not isinstance(source, yaml.MappingNode):
                        raise self._error(source, "expected a mapping to merge with '<<'")
                    yield source

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self._loader.construct_object(node)
        except (KeyError, ValueError):
            raise self._error(node, f"{node.value!r} is no {node.tag.rpartition(':')[2]}") from None

    def _key(self, node: yaml.Node) -> str:
        key = self._scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            found = f"{node.value} " if isinstance(node, yaml.ScalarNode) else ""
            raise self._error(node, f"key {found}is not text; put it in quotes")
        return key

    def _forget(self, path: Path) -> None:
        """Drop the lines of what a merge brought and the mapping itself says otherwise."""
        for said in [said for said in self.lines if said[: len(path)] == path]:
            del self.lines[said]

    def _error(self, node: yaml.Node, problem: str) -> UserError:
        return UserError(f"{self._place(node.start_mark.line + 1)}: {problem}")
