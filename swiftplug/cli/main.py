"""The `swiftplug` command: its subcommands, and how their errors are printed."""

import codecs
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from swiftplug import __version__
from swiftplug.cli.process import is_first, stop_on_signals
from swiftplug.errors import Interrupted, UserError, closest, interruption, nearest
from swiftplug.formatting import printable

if TYPE_CHECKING:
    from swiftplug.config.keys import Key

_COMMANDS = {
    "train": "Train a model.",
    "sample": "Generate several answers to each question, score them, and keep the best to train on.",
    "evaluate": "Measure models on a dataset without training: loss, metrics, and rewards of their answers.",
    "chat": "Talk with a trained model in the terminal, or with several side by side.",
    "compare": "Compare training runs: figures, curves, and in what they differ.",
    "predict": "Write the labels that a trained classifier predicts for the rows of a dataset.",
    "export": "Write a trained model as a folder for other programs, and prove that it is the same model.",
    "preview": "Show rows as the model will see them, each token coloured by its weight in the loss.",
    "list-plugins": "List the installed plugins, without importing them.",
    "show-plugin": "Show what a plugin does, its options, and how to use it.",
    "schema": "Write a JSON schema of the config, for editors.",
    "install": "Install packages of plugins with pip, in swiftplug's own environment.",
    "uninstall": "Uninstall packages of plugins with pip.",
    "new-plugin": "Write a new distribution of plugins, or a file of them, to begin with.",
    "version": "Show the version, and with --verbose what a bug report needs.",
}

_SECONDS_FOR_OTHERS = 5
_ESCAPED = "swiftplug.escaped"


def _lightened(parameters: list[Any]) -> list[Any]:
    """Let parameters that are not given, or are text, stay as they are: typer 0.29 would import pydantic for them."""
    for parameter in parameters:
        parameter.process_value = partial(_process_value, parameter)
        if parameter.name == "help":
            parameter.metavar = ""  # typer 0.29 shows it as an option with a value
    return parameters


def _process_value(parameter: Any, context: Any, value: Any) -> Any:
    if context.resilient_parsing:  # completion asks what is typed so far
        return value
    if value is None and not parameter.required:
        return () if parameter.multiple else None
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)  # since typer 0.29
    if value is not None and annotation in (str, list[str]) and parameter.callback is None:
        return list(value) if annotation == list[str] else value
    return type(parameter).process_value(parameter, context, value)


class _Command(TyperCommand):
    """A command that explains what people get wrong in its options.

    Attributes:
        keys: The keys of the config that its options set, by their names; empty if it has no config.
    """

    keys: Mapping[str, "Key"] = {}

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, `--help` among them."""
        parameters = _lightened(super().get_params(ctx))
        for parameter in parameters:
            parameter.shell_complete = partial(self._complete, parameter)
        return parameters

    def _complete(self, parameter: Any, context: Any, typed: str) -> list[Any]:
        """The values of a parameter that begin with what is typed."""
        from swiftplug.cli.completion import values_of

        return values_of(parameter, self.keys, context.params, typed)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check the arguments, then parse them as any command does."""
        if ctx.resilient_parsing:  # completion; the parser gives up at an option whose value is not typed yet
            return super().parse_args(ctx, args[:-1] if args and args[-1].startswith("-") else args)
        for option, setting, value in zip(args, args[1:], args[2:], strict=False):
            if option == "--set" and "=" not in setting and not value.startswith("-"):
                raise UserError(f"--set {setting} {value}: expected KEY=VALUE; did you mean '--set {setting}={value}'?")
        try:
            _, _, given = self.make_parser(ctx).parse_args(args=[*args])
        except typer.TyperException as error:
            if (name := getattr(error, "option_name", None)) and "no such option" in str(error).lower():
                raise UserError(f"no such option: {name}{self._meant(name, args)}") from None
            raise
        plugins = {key.flag for key in self.keys.values() if key.is_plugin}
        for parameter in {each for each in given if given.count(each) > 1}:
            if parameter.param_type_name != "option" or parameter.multiple or getattr(parameter, "is_flag", False):
                continue
            repeated = f"{parameter.opts[0]} is given {given.count(parameter)} times"
            if parameter.opts[0] not in plugins:
                raise UserError(f"{repeated}; it takes one value")
            print(f"{repeated}; the last one counts", file=sys.stderr)  # as in a config, a later plugin replaces one
        return super().parse_args(ctx, args)

    def _meant(self, name: str, args: list[str]) -> str:
        """The end of the error about an unknown option."""
        from swiftplug.config.counterparts import counterparts
        from swiftplug.config.schema import SampleConfig
        from swiftplug.plugin.registry import KINDS

        options = [option[2:] for parameter in self.params for option in parameter.opts if option.startswith("--")]
        here = counterparts(name.lstrip("-"), self.keys) if self.keys else []
        if not here:
            close = closest(name.lstrip("-"), options).replace("mean '", "mean '--")
            if self.keys and (kind := next((each for each in KINDS.values() if each.option == name), None)):
                return (
                    f"; it is an option of swiftplug {'sample' if kind.key in SampleConfig.model_fields else 'train'}"
                )
            return close or f"; see swiftplug {self.name} --help"
        typed = next(index for index, argument in enumerate(args) if argument.partition("=")[0] == name)
        value = args[typed].partition("=")[2] or next(
            (each for each in args[typed + 1 :][:1] if each[:1] != "-"), "VALUE"
        )
        meant = [key.flag if (key := self.keys.get(each)) and key.panel else f"--set {each}={value}" for each in here]
        return f"; did you mean {' or '.join(map(repr, meant))}?"


class _Commands(TyperGroup):
    """Imports a command only to run it: `swiftplug --help` should not wait for pydantic."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, `--help` among them."""
        return _lightened(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is named."""
        is_unknown = self.get_command(ctx, args[0]) is None and not args[0].startswith("-")
        if is_unknown and not ctx.resilient_parsing:
            raise UserError(f"no such command {args[0]!r}{nearest(args[0], _COMMANDS)}")
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in _COMMANDS else command, rest

    def invoke(self, context: Any) -> Any:
        """Run the command; an interrupted one ends with a line of what is saved."""
        try:
            return super().invoke(context)
        except BaseException as error:
            stopped = interruption(error)
            if stopped is None:
                raise
            if is_first():
                print(str(stopped) or "error: interrupted", file=sys.stderr)
            return 128 + (stopped.number if isinstance(stopped, Interrupted) else signal.SIGINT)


def _typer(**options: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
        **options,
    )


def _load(name: str) -> Any:
    """The command that `swiftplug/cli/NAME.py` defines."""
    function = name.replace("-", "_")
    run = getattr(import_module(f"swiftplug.cli.{function}"), function)
    alone = _typer()
    passes_on = getattr(run, "passes_on_options", False)
    alone.command(name, cls=_Command, context_settings={"ignore_unknown_options": True} if passes_on else None)(run)
    command: Any = typer.main.get_command(alone)
    command.keys = getattr(run, "keys", {})
    return command


app = _typer(name="swiftplug", cls=_Commands)
for _name, _summary in _COMMANDS.items():
    app.command(_name, help=_summary)(lambda: None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"swiftplug {__version__}")
        raise typer.Exit


def _show_completion(shell: str | None) -> None:
    if shell is not None:
        from swiftplug.cli.completion import SCRIPTS

        typer.echo(SCRIPTS[shell], nl=False)
        raise typer.Exit


def _install_completion(shell: str | None) -> None:
    if shell is not None:
        from swiftplug.cli.completion import install

        typer.echo(f"{shell} completes swiftplug from its next start on; the script is {install(shell)}")
        raise typer.Exit


_SHELLS = "bash|zsh|fish"


@app.callback(invoke_without_command=True)
def _swiftplug(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
    install_completion: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        typer.Option(
            metavar=_SHELLS,
            help="Let this shell complete commands, options, plugins and config keys.",
            callback=_install_completion,
            is_eager=True,
        ),
    ] = None,
    show_completion: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        typer.Option(
            metavar=_SHELLS, help="Print the completion script of this shell.", callback=_show_completion, is_eager=True
        ),
    ] = None,
) -> None:
    """Fine-tune language models and sample from them. Every part is a plugin that pip can install.

    Example: swiftplug train        (the built-in quickstart, about a minute)
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """Run the command line and exit: 0, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM, 1 for anything else.

    An error is one line on stderr; `--debug` shows the traceback.
    """
    if instruction := os.environ.get("_SWIFTPLUG_COMPLETE"):
        _complete(instruction)
    stop_on_signals()
    if isinstance(sys.stdout, TextIOWrapper):
        codecs.register_error(_ESCAPED, _escape)
        sys.stdout.reconfigure(errors=_ESCAPED)
    try:
        code = app(prog_name="swiftplug", standalone_mode=False) or 0
    except Exception as error:  # bad input and bugs alike: each is one line, and an exit code
        if "--debug" in sys.argv and not isinstance(error, typer.TyperException):
            raise
        code = _report(error)
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The connections are closed before the interpreter has ended, and the other processes would report that.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Write what the encoding of stdout does not have as JSON does, so that --json stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _complete(instruction: str) -> NoReturn:
    """Print what a shell offers at TAB; whatever goes wrong, nothing is said in the middle of the user's line."""
    from swiftplug.cli import completion

    try:
        command = typer.main.get_command(app)
        print(completion.complete(command, instruction, os.environ.get(completion.LINE, "")))
    except Exception:  # a broken plugin file, say; the shell then offers nothing
        sys.exit(1)
    sys.exit(0)


def _report(error: Exception) -> int:
    """Print an error as one line, and return its exit code."""
    is_bad_input = isinstance(error, (typer.TyperException, UserError))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not (is_first() and is_bad_input):
        # Another process has the same error, or has caused this one by its end; the launcher then ends this process.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(_SECONDS_FOR_OTHERS)
    if isinstance(error, typer.TyperException):
        message = error.format_message().replace("Value error, ", "")  # the pydantic that checks it
        if choice := re.search(r"'([^']*)' is not one of ('.*')\.$", message):
            message = message[:-1] + closest(choice[1], choice[2].strip("'").split("', '"))
        _print_error(message[:1].lower() + message[1:])
        return error.exit_code
    if isinstance(error, UserError):
        if is_first() or "WORLD_SIZE" in os.environ:
            _print_error(str(error))
        return 2
    from swiftplug.runs.errors import is_disk_full

    if is_disk_full(error):
        _print_error(f"the disk is full: {error}")
    else:
        _print_error(f"unexpected {type(error).__name__}: {error} (run again with --debug for the traceback)")
    return 1


def _print_error(message: str) -> None:
    rank = "" if is_first() else f" (process {os.environ['LOCAL_RANK']})"
    line = f"error{rank}: {printable(' '.join(map(str.strip, message.splitlines())))}"
    print(line, file=sys.stderr)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # what torchrun shows at the end of its own report
        facts = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": facts}), encoding="utf-8")
