"""`swiftplug compare`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from swiftplug.cli.run_options import flag


def compare(
    runs: Annotated[
        list[str], Argument(metavar="RUN...", help="Folders of two training runs or more; they may be running.")
    ],
    output: Annotated[
        str, Option(metavar="FILE", help="Page to write; an earlier page of the same runs, in any order, is replaced.")
    ] = "compare.html",
    debug: Annotated[bool, flag("--debug", "Show tracebacks.", None)] = False,
) -> None:
    """Compare training runs: figures, curves laid over each other, and in what configs, plugins and data differ.

    The terminal shows figures and differences. The page has the curves too, over steps, tokens or time.

    Example: swiftplug compare runs/first runs/second --output first-second.html
    """
    from rich.console import Console

    from swiftplug.training.page.compare import compare as run

    run(runs, Path(output).expanduser(), Console())
