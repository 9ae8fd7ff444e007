"""`swiftplug install`: pip in the environment that swiftplug itself is installed in."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from swiftplug.errors import UserError
from swiftplug.formatting import format_command
from swiftplug.plugin.registry import KINDS
from swiftplug.plugin.registry.finder import find_installed


def install(
    packages: Annotated[
        list[str],
        typer.Argument(metavar="PACKAGE", help="What pip installs, and its options: names, files, folders, -U, -e ."),
    ],
) -> None:
    """Install packages of plugins with pip, in swiftplug's own environment, and list the plugins that came.

    Options of pip pass through, such as -U, -e FOLDER, --no-deps, --pre or --index-url URL.

    Example: swiftplug install swiftplug-plugins-example
    """
    before = {(found.kind, found.qualified_name, found.version) for found in find_installed()}
    run_pip("install", packages)
    # In a new process: this one would not see the folder of an editable install.
    command = [sys.executable, "-m", "swiftplug", "list-plugins", "--json"]
    plugins = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    came = [it for it in plugins if (it["kind"], it["qualified_name"], it["version"]) not in before]
    print("Plugins that came:" if came else "No plugins came with that.")
    width = max((len(f"{KINDS[it['kind']].option} {it['name']}") for it in came), default=0)
    for plugin in came:
        option = f"{KINDS[plugin['kind']].option} {plugin['name']}"
        print(f"  {option:{width}}  {plugin['summary'] or ''}".rstrip())
    if came:
        print(f"Next: {format_command('show-plugin', came[0]['name'])}")


vars(install)["passes_on_options"] = True


def run_pip(command: str, arguments: Sequence[str], answers: Callable[[], str | None] = lambda: None) -> None:
    """Run a command of pip; if it fails, this one ends with its exit code.

    Args:
        command: `install` or `uninstall`.
        arguments: What follows it.
        answers: Gives what pip reads, if that is not what this command would.
    """
    if find_spec("pip") is None:
        raise UserError(f"there is no pip in swiftplug's environment; use: {instead_of_pip(command, arguments)}")
    environment = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *arguments], env=environment, input=answers(), text=True
    )
    if done.returncode:
        raise typer.Exit(done.returncode)


def instead_of_pip(command: str, arguments: Sequence[str], prefix: Path = Path(sys.prefix)) -> str:
    """The command that does in an environment without pip what a command of pip would do there.

    Args:
        command: `install` or `uninstall`.
        arguments: What pip would be given.
        prefix: The folder of the environment.
    """
    words = shlex.join(arguments)
    if (prefix / "uv-receipt.toml").is_file():  # each install of a tool names all that belongs to it
        added = "".join(f" --with {shlex.quote(it)}" for it in arguments) if command == "install" else ""
        return f"uv tool install {prefix.name}{added}, and --with for each other package that is to stay"
    if (prefix / "pipx_metadata.json").is_file():
        return f"pipx {'inject' if command == 'install' else 'uninject'} {prefix.name} {words}"
    config = prefix / "pyvenv.cfg"
    if config.is_file() and "\nuv = " in f"\n{config.read_text(encoding='utf-8')}":
        return f"uv pip {command} --python {shlex.quote(sys.executable)} {words}"
    return f"{shlex.quote(sys.executable)} -m ensurepip, and again {format_command(command, *arguments)}"
