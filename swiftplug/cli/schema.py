"""`swiftplug schema`: the config as a JSON schema, for editors."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import typer

from swiftplug.cli.process import loading_libraries
from swiftplug.errors import UserError
from swiftplug.processes import silence_libraries


def schema(
    command: Annotated[
        Literal["train", "sample"] | None,
        typer.Argument(metavar="train|sample", help="Only the config of this command. [dim]\\[default: both][/dim]"),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write to this file instead of the terminal.")
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--plugin", metavar="FILE.py", help="Also the plugins of this Python file. Repeat for several."),
    ] = None,
) -> None:
    """Write a JSON schema of the config, with the options of all installed plugins, for editors.

    The first line of a config then names it for editors that use yaml-language-server (such as VS Code and Neovim):
    # yaml-language-server: $schema=swiftplug.schema.json

    Example: swiftplug schema --output swiftplug.schema.json
    """
    if output == "":
        raise UserError("--output: expected the name of a file")
    file = Path(output).expanduser() if output else None
    if file and not file.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {str(file.parent)!r}")
    if (
        file
        and file.exists()
        and not (file.is_file() and '"$schema"' in file.read_bytes()[:200].decode(errors="replace"))
    ):
        raise UserError(f"--output {output}: exists and is no JSON schema, so it is not replaced")
    silence_libraries()
    with redirect_stdout(sys.stderr), loading_libraries():
        from swiftplug.config.json_schema import config_schema
        from swiftplug.config.schema import RunConfig, SampleConfig, TrainConfig
        from swiftplug.plugin.registry import Registry
        from swiftplug.training.arguments import NOT_SETTABLE

        registry = Registry.discover(files=files or [])
        configs: dict[str, type[RunConfig]] = {"train": TrainConfig, "sample": SampleConfig}
        chosen = [config for name, config in configs.items() if command in (None, name)]
        text = json.dumps(config_schema(chosen, registry, NOT_SETTABLE), indent=2, ensure_ascii=False)
    if file is None:
        print(text)
        return
    from swiftplug.runs.folder import write_atomically

    try:
        write_atomically(file, f"{text}\n")
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from error
