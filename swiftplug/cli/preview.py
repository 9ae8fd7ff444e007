"""`swiftplug preview`."""

from enum import StrEnum
from typing import Annotated

from typer import Option

from swiftplug.cli.run_options import RunRequest, takes_run_options

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
