"""The run folder of a run that was not told one."""

import os
from itertools import count
from pathlib import Path


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
