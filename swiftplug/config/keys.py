"""The keys of a config: what the schema declares about each, and where a run's value for it came from."""

from collections.abc import Mapping
from functools import cache
from inspect import isclass
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.config import JsonDict

from swiftplug.plugin.registry import KINDS, PluginChoice

Path = tuple[str | int, ...]
"""The way to a value in a nested config, such as `("metrics", 1, "max_new_tokens")`."""

_FLAGS_OF_KINDS = {kind.key: kind.option for kind in KINDS.values()}


def key(default: Any, help: str, panel: str = "", *, metavar: str = "", flag: str = "", **constraints: Any) -> Any:
    """Declare a key of a config: a pydantic field with the help text and option of the command line.

    Args:
        default: The value where none is given.
        help: The text of `--help`, in a sentence or two.
        panel: The panel of `--help` that lists its option. Without one there is no option; `--set` always works.
        metavar: The placeholder of the value in `--help`; by default it follows from the type.
        flag: The option; by default it follows from the key (for plugins, from `KINDS`).
        constraints: Constraints of `pydantic.Field`, such as `ge=1`.
    """
    shown: JsonDict = {"panel": panel, "metavar": metavar, "flag": flag}
    return Field(default, description=help, json_schema_extra=shown, **constraints)


class Key(NamedTuple):
    """A key of a config.

    Attributes:
        name: The name, with its section: `data.template`.
        type: The type of the value or, for a list, of its items; without `None`.
        is_list: Whether the value is a list.
        default: The value where none is given.
        help: The text of `--help`.
        panel: The panel of `--help` that lists its option; empty where it has none.
        metavar: The placeholder of the value in `--help`; empty where it follows from the type.
        flag: The option, such as `--metric` for `metrics`.
    """

    name: str
    type: Any
    is_list: bool
    default: Any
    help: str
    panel: str
    metavar: str
    flag: str

    @property
    def is_plugin(self) -> bool:
        """Whether its value names a plugin, or several."""
        return isclass(self.type) and issubclass(self.type, PluginChoice)

    @property
    def is_section(self) -> bool:
        """Whether it holds keys of its own."""
        return isclass(self.type) and issubclass(self.type, BaseModel) and not self.is_plugin

    @property
    def choices(self) -> tuple[str, ...]:
        """The values to choose from; empty if there is no fixed list."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()


@cache
def keys_of(model: type[BaseModel], section: str = "") -> dict[str, Key]:
    """Every key of a config by its name; a section is followed by its keys."""
    keys = {}
    for name, field in model.model_fields.items():
        value_type = _without_wrappers(field.annotation)
        is_list = get_origin(value_type) is list
        shown = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        found = Key(
            name=f"{section}{name}",
            type=_without_wrappers(get_args(value_type)[0]) if is_list else value_type,
            is_list=is_list,
            default=field.default,
            help=field.description or "",
            panel=str(shown.get("panel", "")),
            metavar=str(shown.get("metavar", "")),
            flag=str(shown.get("flag") or _FLAGS_OF_KINDS.get(name) or f"--{name.replace('_', '-')}"),
        )
        keys[found.name] = found
        if found.is_section:
            keys |= keys_of(found.type, f"{name}.")
    return keys


def _without_wrappers(annotation: Any) -> Any:
    """The type inside `Annotated[..., ...]` and `... | None`."""
    if get_origin(annotation) is Annotated:
        return _without_wrappers(get_args(annotation)[0])
    if NoneType in get_args(annotation):
        return _without_wrappers(next(inner for inner in get_args(annotation) if inner is not NoneType))
    return annotation


def value_at(values: Mapping[str, Any], path: Path) -> Any:
    """The value at a path of a config; None where there is none."""
    at: Any = values
    for part in path:
        if isinstance(at, Mapping):
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        else:
            return None
    return at


class KeySource(NamedTuple):
    """Where a value came from.

    Attributes:
        place: `train.yaml:7`, or the option as typed.
        in_file: Whether the place is a line of a file, so that a message must also name the key.
    """

    place: str
    in_file: bool = False


class KeySources(dict[Path, KeySource]):
    """Where each value of a config came from, by its path. Defaults have no source."""

    def where(self, path: Path) -> str:
        """The beginning of an error message about the value at a path."""
        key = ".".join(map(str, path))
        source = self.nearest(path)
        if source is None:
            return key
        return f"{source.place}: {key}" if source.in_file else source.place

    def nearest(self, path: Path) -> KeySource | None:
        """The source of a value, else of the innermost section or list around it that has one."""
        return next((self[path[:length]] for length in range(len(path), 0, -1) if path[:length] in self), None)
