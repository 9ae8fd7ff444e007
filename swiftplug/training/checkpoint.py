"""Checkpoints on disk: one takes its name only when it is complete, and loses it before it is deleted."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swiftplug.errors import UserError
from swiftplug.runs.errors import disk_full_message, is_disk_full

PREFIX = "checkpoint-"
STAGING = ".saving-"
DOOMED = ".deleting-"


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    named = [path for path in run_dir.glob(f"{PREFIX}*") if path.is_dir() and re.fullmatch(r"\d+", _step(path))]
    return sorted(named, key=lambda path: int(_step(path)))


def clear_leftovers(run_dir: Path) -> None:
    """Remove what a killed run was writing or deleting; several processes of a run may do so at once."""
    for pattern in (f"{STAGING}*", f"{DOOMED}*"):
        for path in run_dir.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `final` when the block ends well and vanishes when it does not.

    Raises:
        UserError: The disk is full; what was complete before still is.
    """
    staging = final.with_name(f"{STAGING}{final.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, Exception) and is_disk_full(error):
            raise UserError(disk_full_message(final)) from error
        raise
    if final.exists():
        remove_checkpoint(final)
    staging.rename(final)


@contextmanager
def staged_into(run_dir: Path, last: str) -> Iterator[Path]:
    """A folder to write into, whose files move into `run_dir` when the block ends well.

    Args:
        run_dir: An existing folder.
        last: The file whose presence says that all of them are there; it goes first and comes last.

    Raises:
        UserError: The disk is full; what was complete before still is.
    """
    with staged(run_dir / "final") as staging:
        yield staging
    finished = run_dir / "final"
    (run_dir / last).unlink(missing_ok=True)
    for path in sorted(finished.iterdir(), key=lambda path: path.name == last):
        target = run_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    finished.rmdir()


def rotate(run_dir: Path, keep: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond `keep`, never the newest or the best.

    Args:
        run_dir: The run's folder.
        keep: `save_total_limit`; None keeps all.
        best: The path of the best checkpoint, if there is one.
    """
    found = checkpoints(run_dir)
    if not keep:
        return
    protected = {found[-1], Path(best)} if best and found else set(found[-1:])
    excess = len(found) - max(keep, len(protected))
    for path in [path for path in found if path not in protected][: max(excess, 0)]:
        remove_checkpoint(path)


def keep_only(run_dir: Path, best: Path) -> None:
    """Delete every checkpoint but one."""
    for path in checkpoints(run_dir):
        if path != best:
            remove_checkpoint(path)


def remove_checkpoint(path: Path) -> None:
    """Delete a folder so that a half-deleted one never bears its name."""
    doomed = path.with_name(f"{DOOMED}{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _step(path: Path) -> str:
    return path.name.removeprefix(PREFIX)
