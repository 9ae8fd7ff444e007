"""The run folder of a run that was not told one, and the one that the quickstart left."""

import os
from itertools import count
from pathlib import Path

from swiftplug.errors import UserError


def default_output_dir(name: str, resume: bool) -> str:
    """`runs/NAME`, or where a run is there already `runs/NAME-2` and so on; to resume, the last that is there.

    Processes of one run (`torchrun`) must agree and cannot all look at what the others just made: they take
    `runs/NAME` as it is, unless `--nproc` started them, which has looked before and tells them.

    Args:
        name: The config's, without its ending, or the task's.
        resume: Whether an earlier run goes on.
    """
    first = Path("runs", name)
    if "WORLD_SIZE" in os.environ or not _taken(first):
        return str(first)
    latest = first
    for number in count(2):
        folder = first.with_name(f"{name}-{number}")
        if not _taken(folder):
            return str(latest if resume else folder)
        latest = folder
    raise AssertionError("count() does not end")


def _taken(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def last_quickstart_run() -> str:
    """The folder of the last quickstart training that finished in the current folder.

    Raises:
        UserError: There is none.
    """
    numbers = {"": 1, **{f"-{number}": number for number in range(2, 1000)}}
    finished = [
        folder
        for folder in Path("runs").glob("quickstart*")
        if (folder / "swiftplug.json").is_file() and folder.name.removeprefix("quickstart") in numbers
    ]
    if not finished:
        raise UserError(
            "no model and no dataset named, and no finished quickstart run in ./runs to sample from; make one with "
            "`swiftplug train` (about a minute), or name --model and --dataset"
        )
    return str(max(finished, key=lambda folder: numbers[folder.name.removeprefix("quickstart")]))
