"""What the pages of the reference list, read from the code: commands, keys of the config, and built-in plugins."""

import inspect
import re
from itertools import groupby
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from rich.text import Text

from swiftplug.cli import main
from swiftplug.config.keys import Key, keys_of
from swiftplug.config.schema import SampleConfig, TrainConfig
from swiftplug.plugin.registry import BUILT_IN, KINDS, FoundPlugin, PluginChoice, Registry
from swiftplug.plugin.registry.declared import declared_options
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


class Option(NamedTuple):
    """An option of a plugin, and what it means."""

    name: str
    shown: str
    help: str


class Plugin(NamedTuple):
    """A built-in plugin."""

    name: str
    found: FoundPlugin
    text: str
    options: list[Option]
    any_other: bool


def kinds() -> list[tuple[Kind, str]]:
    """The kinds of plugin, each with its title."""
    titles = {"orm": "Outcome reward model (ORM)", "prm": "Process reward model (PRM)", "tools": "Tools format"}
    return [(kind, titles.get(name, name.replace("_", " ").capitalize())) for name, kind in KINDS.items()]


def plugins(kind: str) -> list[Plugin]:
    """The built-in plugins of a kind, with their options."""
    return [_plugin(found) for found in Registry.discover().found(kind) if found.distribution == BUILT_IN]


def _plugin(found: FoundPlugin) -> Plugin:
    plugin = found.load()
    if found.kind == "tuner":
        documented = [plugin, plugin.prepare_model]
    elif inspect.isclass(plugin):
        documented = [plugin, *(vars(base).get("__init__") for base in reversed(plugin.__mro__[:-1]))]
    else:
        documented = [plugin]
    text = (inspect.getdoc(plugin) if callable(plugin) else "") or found.summary or ""
    meanings = {name: text for each in documented for name, text in _arguments(inspect.getdoc(each) or "").items()}
    declared = declared_options(found.kind, plugin)
    options = [Option(name, _declared(it), meanings.get(name, "")) for name, it in declared.named.items()]
    body = re.split(r"\n\s*(?:Args|Returns|Raises|Example|Attributes|Yields):\n", text)[0]
    return Plugin(found.name, found, body, options, declared.any_other)


def _arguments(docstring: str) -> dict[str, str]:
    """The descriptions in the section `Args:` of a docstring."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.M)
    found = re.findall(r"^    \*{0,2}(\w+)[^:\n]*: (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M)
    return {name: " ".join(text.split()) for name, text in found}


def _declared(parameter: inspect.Parameter) -> str:
    required = parameter.default is parameter.empty
    return f"{_type(parameter.annotation)}, {'required' if required else f'default {_value(parameter.default)}'}"


def _value(value: Any) -> str:
    if value is None:
        return "`null`"
    if isinstance(value, str) and "\n" in value:
        return f"a text of {value.count(chr(10)) + 1} lines"
    return f"`{str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else repr(value)}`"


_NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    dict: "mapping",
    Any: "anything",
}


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), [each for each in get_args(annotation) if each is not NoneType]
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in (list, set, frozenset) or (
        inspect.isclass(origin) and origin.__name__ in ("Sequence", "Collection", "Iterable")
    ):
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)} {_type(inner[0])}s" if Ellipsis not in inner else f"list of {_type(inner[0])}"
    if origin in (dict,) or (inspect.isclass(origin) and origin.__name__ == "Mapping"):
        return "mapping"
    if inner and origin is not None:
        return " or ".join(dict.fromkeys(map(_type, inner)))
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
