"""A config before it is checked: YAML, then `--set`, then options."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from swiftplug.config.keys import Key, KeySource, KeySources, Path, keys_of, value_at
from swiftplug.config.messages import config_error
from swiftplug.config.schema import RunConfig
from swiftplug.config.yaml_file import describe, read_config, read_value
from swiftplug.errors import UserError, nearest

C = TypeVar("C", bound=RunConfig)


class Setting(NamedTuple):
    """One `--set KEY=VALUE`.

    Attributes:
        path: The key, split at its dots.
        value: The value, read as YAML.
        source: The option as typed.
        is_plugin_option: Whether it sets an option of the plugin that a key names.
    """

    path: tuple[str, ...]
    value: Any
    source: KeySource
    is_plugin_option: bool

    @classmethod
    def parse(cls, text: str, keys: Mapping[str, Key]) -> "Setting":
        """Read `KEY=VALUE`.

        Raises:
            UserError: There is no `=`, a part of the key is empty, or the value is not YAML.
        """
        place = f"--set {text}"
        name, equals, value = text.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(part.strip() for part in path):
            raise UserError(f"{place}: expected KEY=VALUE, such as training.learning_rate=1e-4")
        key = keys.get(path[0])
        names_plugin = len(path) == 1 or (path[1:] == ("name",) and key is not None and not key.is_list)
        is_plugin_option = key is not None and key.is_plugin and not names_plugin
        return cls(path, read_value(value, place), KeySource(place), is_plugin_option)


class Draft(Generic[C]):
    """The config that a command line asks for, not yet checked: plain values, and where each came from.

    Attributes:
        model: The schema to check it against.
        options: The values of the given options, by key.
        values: The values by key, in nested dicts and lists.
        sources: Where they came from, by path.
        keys: The keys of the schema.
    """

    def __init__(self, model: type[C], options: Mapping[str, Any], sets: Sequence[str]) -> None:
        self.model = model
        self.options = {name: value for name, value in options.items() if value not in (None, [], ())}
        self.values: dict[str, Any] = {}
        self.sources = KeySources()
        self.keys = keys_of(model)
        self._settings = [Setting.parse(text, self.keys) for text in sets]

    def names_any(self, *keys: str) -> bool:
        """Whether the command line gives any of these keys a value."""
        named = {*self.options, *(setting.path[0] for setting in self._settings if not setting.is_plugin_option)}
        return not named.isdisjoint(keys)

    def given(self, name: str) -> Any:
        """What the command line gives a key; None if it does not."""
        settings = [setting.value for setting in self._settings if setting.path == (name,)]
        return self.options.get(name, settings[-1] if settings else None)

    def merge_onto(self, path: str | None) -> C:
        """Merge the defaults, a config file and the command line, in that order, and check the result.

        Raises:
            UserError: Something is unknown, of the wrong type or out of place; the message says where.
        """
        if path is not None:
            self.values, self.sources = read_config(path)
        self._override()
        try:
            config = self.model.model_validate({key: value for key, value in self.values.items() if value is not None})
        except ValidationError as error:
            raise config_error(error, self.values, self.sources, self.keys) from error
        config.set_sources(self.sources)
        return config

    def _override(self) -> None:
        """Apply every `--set`, then the options, then plugin options from `--set`: by now the plugins are known."""
        for setting in self._settings:
            if not setting.is_plugin_option:
                self._set(setting.path, setting.value, setting.source)
        for name, value in self.options.items():
            path = tuple(name.split("."))
            if name not in self.keys:  # a field of `training`
                self._put(path, value, KeySource(f"--{path[-1].replace('_', '-')}"))
                continue
            key = self.keys[name]
            if key.is_list and not key.is_plugin:
                before = _as_list(value_at(self.values, path))
                value = [*before, *(item for item in value if item not in before)]
            self._set(path, list(value) if key.is_list else value, KeySource(key.flag))
        for setting in self._settings:
            if setting.is_plugin_option:
                self._set_plugin_option(setting)

    def _set(self, path: tuple[str, ...], value: Any, source: KeySource) -> None:
        """Set a key; a plugin that is named again keeps its options."""
        key = self.keys.get(path[0])
        if key is None or not key.is_plugin:
            self._put(path, value, source)
            return
        named = value if isinstance(value, list) else [value]
        now: list[Any] = []
        kept: dict[Path, KeySource] = {}
        for item in named:
            known, place = self._configured(key, item)
            new = (key.name, len(now)) if isinstance(value, list) else (key.name,)
            now.append({**known, "name": item} if known else item)
            if known:
                options = [path for path in self.sources if path[: len(place)] == place and len(path) > len(place)]
                kept |= {(*new, *path[len(place) :]): self.sources[path] for path in options}
        self._put((key.name,), now if isinstance(value, list) else now[0], source)
        self.sources.update({path: origin for path, origin in kept.items() if path[-1] != "name"})

    def _configured(self, key: Key, name: Any) -> tuple[dict[str, Any], Path]:
        """The plugin of this name that a key has so far with options, and its path; nothing if there is none."""
        held = self.values.get(key.name)
        for index, item in enumerate(_as_list(held)):
            if isinstance(name, str) and isinstance(item, dict) and _name(item) == _name(name):
                return item, (key.name, index) if isinstance(held, list) else (key.name,)
        return {}, ()

    def _set_plugin_option(self, setting: Setting) -> None:
        """Set one option of the plugin that a key names: `loss.gamma`, `metrics.nlg.max_new_tokens`."""
        key = self.keys[setting.path[0]]
        path: Path = (key.name,)
        option = setting.path[1:]
        if key.is_list:
            plugins = _as_list(self.values.get(key.name))
            index, option = _find(plugins, setting, key)
            self._put(path, plugins, self.sources.get(path, setting.source))
            path = (key.name, index)
        elif self.values.get(key.name) is None:
            if key.default is None:
                raise UserError(f"{setting.source.place}: no {key.name} is set; name one with {key.flag} first")
            self._put(path, key.default.name, setting.source)
        plugin = value_at(self.values, path)
        if isinstance(plugin, str):
            self._put(path, {"name": plugin}, self.sources.nearest(path) or setting.source)
        self._put((*path, *option), setting.value, setting.source)

    def _put(self, path: Path, value: Any, source: KeySource) -> None:
        """Set the value at a path, replacing any other; missing mappings on the way are created."""
        at: Any = self.values
        part: Any
        for depth, part in enumerate(path):
            if not isinstance(at, list if isinstance(part, int) else dict):
                name = ".".join(map(str, path[:depth]))
                raise UserError(f"{source.place}: {name!r} is {describe(at)}, which has no keys")
            if depth == len(path) - 1:
                at[part] = value
            elif isinstance(at, dict) and at.get(part) is None:
                at[part] = {}
                self.sources[path[: depth + 1]] = source
            at = at[part]
        for inside in [source_path for source_path in self.sources if source_path[: len(path)] == path]:
            del self.sources[inside]
        self.sources[path] = source


def _find(plugins: list[Any], setting: Setting, key: Key) -> tuple[int, tuple[str, ...]]:
    """The index of the plugin that `NAME.OPTION` refers to, and the option; names may contain dots."""
    target = ".".join(setting.path[1:])
    found = [
        (index, target[len(name) + 1 :])
        for index, item in enumerate(plugins)
        for name in _names(item)
        if target.startswith(f"{name}.")
    ]
    if not found:
        known = {name for item in plugins for name in _names(item)}
        hint = nearest(setting.path[1], known) if known else f"; name one with {key.flag}"
        raise UserError(f"{setting.source.place}: no {setting.path[1]!r} among {key.name!r}{hint}")
    option = min((option for _, option in found), key=len)
    indices = {index for index, rest in found if rest == option}
    if len(indices) > 1:
        raise UserError(f"{setting.source.place}: several of {key.name!r} have that name")
    return indices.pop(), tuple(option.split("."))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _name(item: Any) -> str:
    """The name of a plugin, without the number of rows at the end of a dataset's."""
    name = item.get("name") if isinstance(item, dict) else item
    return re.sub(r"#\d+$", "", name) if isinstance(name, str) else ""


def _names(item: Any) -> set[str]:
    """The names of a plugin: with and without its distribution."""
    name = _name(item)
    return {form for form in (name, name.partition(":")[2]) if form}
