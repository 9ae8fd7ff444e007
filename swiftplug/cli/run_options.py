"""Builds the command-line options from the keys in `config/schema.py`; declare an option there."""

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, NamedTuple

from typer import Argument, Option

from swiftplug.config.keys import Key, keys_of
from swiftplug.config.schema import PANELS, RUN, RunConfig
from swiftplug.plugin.registry import PluginChoice


def flag(name: str, help: str, panel: str | None = RUN) -> Any:
    """An option without a value."""
    return Option(name, metavar="", help=help, rich_help_panel=panel)


def set_option(examples: str, panel: str | None = None) -> Any:
    """The option `--set`, with examples for its help."""
    shown = f"Set any key of the config, such as {examples}. Repeat for several."
    return Option("--set", metavar="KEY=VALUE", help=shown, rich_help_panel=panel)


Debug = Annotated[bool, flag("--debug", "Show tracebacks and the warnings of libraries.", None)]

DryRun = Annotated[
    bool, flag("--dry-run", "Check config, plugins and data, print the plan, and stop before the model is loaded.")
]

Overwrite = Annotated[bool, flag("--overwrite", "Replace the run in the output folder with a new one.")]


class RunRequest(NamedTuple):
    """What the command line asks for, before it is merged with the config file.

    Attributes:
        path: The YAML file, or None.
        options: The values of options by config key; None or [] where not given.
        sets: The `KEY=VALUE` of each `--set`.
        debug: Whether to show tracebacks and the warnings of libraries.
        keys: The keys of the config.
    """

    path: str | None
    options: dict[str, Any]
    sets: list[str]
    debug: bool
    keys: Mapping[str, Key]

    def arguments(self) -> list[str]:
        """The same request as command-line arguments."""
        given = [(self.keys[name].flag, value) for name, value in self.options.items() if value not in (None, [])]
        values = [(flag, item) for flag, value in given for item in (value if isinstance(value, list) else [value])]
        return [
            *([self.path] if self.path else []),
            *(flag if item is True else f"{flag}={item}" for flag, item in values),
            *(f"--set={setting}" for setting in self.sets),
            *(["--debug"] if self.debug else []),
        ]


def takes_run_options(
    config: type[RunConfig], set_examples: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of a config to a command, which gets them as its first argument, a `RunRequest`."""
    config_file = Argument(
        metavar="CONFIG",
        help="YAML file, or folder of a run. With no CONFIG, --model or --dataset, the built-in quickstart is used.",
    )
    return takes_options(keys_of(config), set_examples, config_file)


def takes_options(
    keys: Mapping[str, Key], set_examples: str, config_file: Any = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of some keys to a command, which gets them as its first argument, a `RunRequest`.

    Args:
        keys: The keys, by name; those with a panel are options.
        set_examples: What may follow --set, for its help.
        config_file: The argument that names a config file; None if there is none.
    """
    names = {key.name.replace(".", "_"): key for key in keys.values() if key.panel}
    by_panel = sorted(names.items(), key=lambda item: PANELS.index(item[1].panel))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            *([_parameter("path", str | None, config_file, None)] if config_file else []),
            *(_parameter(name, _typer_type(key), _typer_option(key), None) for name, key in by_panel),
            *(own.replace(kind=Parameter.KEYWORD_ONLY) for own in list(signature(command).parameters.values())[1:]),
            _parameter("sets", list[str] | None, set_option(set_examples, RUN), None),
            _parameter("debug", bool, flag("--debug", "Show tracebacks and the warnings of libraries."), False),
        ]

        @wraps(command)
        def parsed(sets: list[str] | None, debug: bool, path: str | None = None, **values: Any) -> None:
            options = {key.name: values.pop(name) for name, key in names.items()}
            command(RunRequest(path, options, sets or [], debug, keys), **values)

        vars(parsed).update(__signature__=Signature(parameters), keys=keys)
        parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return parsed

    return decorate


def _parameter(name: str, value_type: Any, declaration: Any, default: Any) -> Parameter:
    annotation = Annotated[value_type, declaration]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _typer_type(key: Key) -> Any:
    """The type of an option; its default, None, means that it is not given."""
    if key.is_list:
        return list[str] | None
    return (key.type if key.type in (bool, int, float) else str) | None


def _typer_option(key: Key) -> Any:
    metavar = key.metavar or "|".join(key.choices) or {bool: "", int: "N", float: "X"}.get(key.type, "NAME")
    default = key.default.name.rpartition(":")[2] if isinstance(key.default, PluginChoice) else key.default
    has_default = default not in (None, []) and default is not False
    shown = f" [dim]\\[default: {default}][/dim]" if has_default else ""
    return Option(key.flag, metavar=metavar, help=f"{key.help}{shown}", rich_help_panel=key.panel)
