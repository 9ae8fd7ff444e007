"""The config of a training as pages show it."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from swiftplug.config.schema import TrainConfig
from swiftplug.config.yaml_file import write_inline

_SECTIONS = ("data", "model_options", "plugins", "training")


class ConfigLine(NamedTuple):
    """A line of a config as YAML, and whether it says other than the default."""

    depth: int
    text: str
    is_given: bool


def config_lines(config: TrainConfig) -> list[ConfigLine]:
    """Every key of a config, as lines of YAML."""
    return [*_lines(config.plain(), TrainConfig().plain())]


def _lines(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[ConfigLine]:
    for key, value in values.items():
        is_given = _plain(value) != _plain(defaults.get(key))
        if key in _SECTIONS and value:
            yield ConfigLine(0, f"{key}:", is_given)
            default = defaults.get(key) or {}
            for name, each in value.items():
                yield ConfigLine(1, f"{name}: {write_inline(each)}", name not in default or default[name] != each)
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            yield ConfigLine(0, f"{key}:", is_given)
            yield from (ConfigLine(0, f"- {_inline(each)}", is_given) for each in value)
        else:
            yield ConfigLine(0, f"{key}: {_inline(value)}", is_given)


def _inline(value: Any) -> str:
    """A value as YAML of one line, a plugin with its name first."""
    if not isinstance(value, dict) or not value:
        return write_inline(value)
    return f"{{{', '.join(f'{name}: {write_inline(each)}' for name, each in value.items())}}}"


def flat_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Every key of a config, those in sections and the options of plugins by their path, with its value as YAML.

    Example:
        >>> flat_config({"tuner": {"name": "swiftplug:lora", "r": 8}, "data": {"packing": False}})
        {'tuner': 'lora', 'tuner.r': '8', 'data.packing': 'false'}
    """
    flat = {}
    for key, value in config.items():
        if not isinstance(value, dict):
            flat[key] = write_inline(_plain(value))
            continue
        options = dict(value)
        if key not in _SECTIONS:
            flat[key] = write_inline(_plain(options.pop("name", None)))
        flat |= {f"{key}.{name}": write_inline(each) for name, each in options.items()}
    return flat


def _plain(value: Any) -> Any:
    """A value in which a built-in plugin has its bare name."""
    if isinstance(value, str):
        return value.removeprefix("swiftplug:")
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {**value, "name": _plain(value["name"])} if isinstance(value, dict) and "name" in value else value
