"""`swiftplug preview`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from swiftplug.cli.process import loading_libraries, prepare_process
from swiftplug.cli.run_options import RunRequest, takes_run_options
from swiftplug.config.schema import TrainConfig
from swiftplug.errors import UserError

_PREVIEW = "Preview"


@takes_run_options(TrainConfig, "data.max_length=512 or data.columns.question=prompt")
def preview(
    request: RunRequest,
    rows: Annotated[int, Option(metavar="N", min=1, help="Number of rows to show.", rich_help_panel=_PREVIEW)] = 3,
    format: Annotated[
        Literal["text", "html", "json"],
        Option(metavar="text|html|json", help="Output format.", rich_help_panel=_PREVIEW),
    ] = "text",
    output: Annotated[
        str | None, Option(metavar="FILE", help="Write to this file instead of the terminal.", rich_help_panel=_PREVIEW)
    ] = None,
) -> None:
    """Show rows as the model will see them, each token coloured by its weight in the loss.

    It takes the config and options of train.

    Example: swiftplug preview --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset train.jsonl --loss-scale last_round
    """
    from swiftplug.config.load import load_train_config
    from swiftplug.runs.plugins import check_plugin_names

    config = load_train_config(request.path, request.options, request.sets).config
    prepare_process(debug=request.debug, num_proc=config.data.num_proc)
    check_plugin_names(config)
    with loading_libraries():
        from swiftplug.preview.preview import preview as render
    from swiftplug.runs.folder import write_atomically

    text = render(config, rows=rows, format=format, color=output is None and sys.stdout.isatty())
    if output is None:
        typer.echo(text)
        return
    try:
        write_atomically(Path(output), f"{text}\n")
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from error
