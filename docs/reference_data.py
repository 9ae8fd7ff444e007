"""What the pages of the reference list, read from the code: commands, keys of the config, and built-in plugins."""

import inspect
import json
import re
from itertools import groupby
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from rich.text import Text

from swiftplug.cli import main
from swiftplug.config.keys import Key, keys_of
from swiftplug.config.schema import SampleConfig, TrainConfig
from swiftplug.plugin.registry import BUILT_IN, KINDS, FoundPlugin, PluginChoice, Registry
from swiftplug.plugin.registry.definitions import Description, Option, describe
from swiftplug.plugin.registry.kinds import Kind

CONFIGS = {"train": keys_of(TrainConfig), "sample": keys_of(SampleConfig)}
SHARED_KEYS = [name for name in CONFIGS["train"] if CONFIGS["sample"].get(name) == CONFIGS["train"][name]]


class Command(NamedTuple):
    """A command: its help, its arguments, and its options by panel; `like` has the same ones and more."""

    name: str
    help: str
    arguments: list[Any]
    panels: list[tuple[str, list[Any]]]
    like: str


def commands() -> list[Command]:
    """Every command of `swiftplug`."""
    return [_command(name) for name in main._COMMANDS]


def _command(name: str) -> Command:
    command = main._load(name)
    params = [param for param in command.params if not getattr(param, "hidden", False)]
    like = "train" if name != "train" and command.keys == CONFIGS["train"] else ""
    known = {key.flag for key in CONFIGS["train"].values()} | {"--set", "--debug"} if like else set()
    options = [param for param in params if param.param_type_name == "option" and not {*param.opts} & known]
    panels = groupby(options, key=lambda option: option.rich_help_panel or "")
    arguments = [param for param in params if param.param_type_name == "argument"]
    return Command(
        name, inspect.cleandoc(command.help), arguments, [(panel, [*group]) for panel, group in panels], like
    )


def plain(help: str) -> str:
    """A text of `--help` as Markdown."""
    return escaped(Text.from_markup(help).plain)


def described(help: str) -> str:
    """The description of a command as Markdown, its examples as blocks."""
    return re.sub(r"^Examples?: (.+)", r"```console\n$ \1\n```", escaped(help), flags=re.M)


def escaped(text: str) -> str:
    """Plain text as Markdown: only its code spans mean something."""
    return "".join(
        part if part.startswith("`") else re.sub(r"(?=[<*_\\])", r"\\", part) for part in re.split(r"(`[^`]*`)", text)
    )


def usage(option: Any) -> str:
    """An option as one types it, with its placeholder."""
    return f"{', '.join(option.opts)} {option.metavar or ''}".strip()


def in_words(key: Key) -> str:
    """What a key takes, and its default."""
    if key.is_section:
        return "section"
    if key.is_plugin:
        shown = "plugin"
    elif key.choices:
        shown = " or ".join(f"`{choice}`" for choice in key.choices)
    else:
        shown = _type(key.type)
    default = key.default.name.rpartition(":")[2] if isinstance(key.default, PluginChoice) else key.default
    return f"{'list of ' if key.is_list else ''}{shown}, default {_value(default)}"


def kinds() -> list[tuple[Kind, str]]:
    """The kinds of plugin, each with its title."""
    titles = {"orm": "Outcome reward model (ORM)", "prm": "Process reward model (PRM)", "tools": "Tools format"}
    return [(kind, titles.get(name, name.replace("_", " ").capitalize())) for name, kind in KINDS.items()]


def plugins(kind: str) -> list[tuple[FoundPlugin, Description]]:
    """The built-in plugins of a kind, and what `swiftplug show-plugin` says of each."""
    built_in = [found for found in Registry.discover().found(kind) if found.distribution == BUILT_IN]
    return [(found, describe(found)) for found in built_in]


def form(option: Option) -> str:
    """The type and the default of an option."""
    default = "required" if option.required else f"default {_value(option.default)}"
    return f"{code(option.type)}, {default}" if option.type else default


def code(text: str) -> str:
    return f"`{text}`"


def _value(value: Any) -> str:
    if isinstance(value, str) and "\n" in value:
        return f"a text of {value.count(chr(10)) + 1} lines"
    return code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _type(annotation: Any) -> str:
    """A type of a key in words."""
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    return (
        " or ".join(dict.fromkeys(map(_type, get_args(annotation))))
        if get_origin(annotation) in (Union, UnionType)
        else names.get(annotation, "mapping")
    )
