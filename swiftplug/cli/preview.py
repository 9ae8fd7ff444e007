"""`swiftplug preview`."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from swiftplug.cli.run_options import RunRequest, takes_run_options
from swiftplug.errors import UserError

_PREVIEW = "Preview"


class Format(StrEnum):
    """What a preview is written as."""

    TEXT = "text"
    HTML = "html"
    JSON = "json"


@takes_run_options
def preview(
    request: RunRequest,
    rows: Annotated[int, Option(metavar="N", min=1, help="Rows to show.", rich_help_panel=_PREVIEW)] = 3,
    format: Annotated[Format, Option(help="How to show them.", rich_help_panel=_PREVIEW)] = Format.TEXT,
    output: Annotated[
        str | None, Option(metavar="FILE", help="Write there and not to the screen.", rich_help_panel=_PREVIEW)
    ] = None,
) -> None:
    """Show rows as the model will see them, each token coloured by its weight in the loss.

    It takes the options of train.

    Example: swiftplug preview --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset train.jsonl --loss-scale last_round
    """
    from swiftplug.cli.quiet import quiet_libraries, settle_tokenizer_threads
    from swiftplug.config.load import load_train_config

    config = load_train_config(request.path, request.options, request.sets).config
    settle_tokenizer_threads(config.data.num_proc)
    if not request.debug:
        quiet_libraries()
    from swiftplug.preview.preview import preview as render

    shown = render(config, rows=rows, format=format.value, color=output is None and sys.stdout.isatty())
    if output is None:
        typer.echo(shown)
    else:
        _write(Path(output), shown)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(f"{text}\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from error
