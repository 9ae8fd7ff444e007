"""The folder of a sampling run: whether it may be written into, and whether it is this run's."""

from collections.abc import Sequence
from pathlib import Path

from swiftplug.errors import UserError
from swiftplug.runs.manifest import CONFIG, MANIFEST
from swiftplug.sampling.ledger import Ledger, LedgerInUseError
from swiftplug.sampling.outputs import CANDIDATES, PAGE, SAMPLES

LEDGER = "ledger.sqlite"
_RESULTS = (LEDGER, f"{LEDGER}-journal", CANDIDATES, SAMPLES, PAGE, MANIFEST, CONFIG)


def check_sample_dir(folder: Path, inputs: Sequence[str], *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a run must not write into; nothing is made or changed.

    Args:
        folder: The run's folder.
        inputs: Names of the files that the run reads; one may end in `#N`.
        resume: Whether to go on with the run in it.
        overwrite: Whether to begin the run in it again.

    Raises:
        UserError: It is no folder, or holds another run, one that is still going on, or other files.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: go on with the run, or begin it again")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file; expected a folder")
    held = _held(folder)
    if not held:
        return
    if LEDGER not in held:
        what = "a training run" if CONFIG in held else "other files"
        raise UserError(f"output_dir: {folder} holds {what}; name another folder")
    if not resume and not overwrite:
        raise UserError(
            f"output_dir: {folder} holds another run; name another folder, go on with this one by --resume, or begin "
            "it again by --overwrite"
        )
    if not overwrite:
        return
    try:
        Ledger(folder / LEDGER).close()
    except LedgerInUseError:
        raise
    except UserError:
        pass  # a damaged one may go
    for name in inputs:
        path = Path(name.partition("#")[0]).expanduser()
        if path.name in _RESULTS and path.parent.resolve() == folder.resolve():
            raise UserError(f"output_dir: --overwrite would remove {path}, which this run reads; name another folder")


def is_begun(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    return (folder / LEDGER).is_file()


def clear(folder: Path) -> None:
    """Remove what a run left; the ledger last, so that what is left half-removed still counts as a run."""
    for name in reversed(_RESULTS):
        (folder / name).unlink(missing_ok=True)


def _held(folder: Path) -> set[str]:
    """The files of a folder, but those that a killed run was still writing."""
    return {it.name for it in folder.iterdir() if ".partial" not in it.name} if folder.is_dir() else set()
