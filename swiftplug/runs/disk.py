"""A full disk, told from other failures."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swiftplug.errors import UserError


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that of a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors and torch's archive writer raise errors of their own, which tell it in words only.
        if any(
            words in str(seen)
            for words in ("No space left", "disk is full", "inline_container.cc", "PytorchStreamWriter failed")
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def disk_full_message(place: Path) -> str:
    """What to say when the disk has filled while a run was writing."""
    return f"{place}: the disk is full; free some space and go on with --resume (what was saved before is unharmed)"


@contextmanager
def explained_disk(run_dir: Path) -> Iterator[None]:
    """Tell a full disk in one line that names the run's folder.

    Raises:
        UserError: The disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise UserError(disk_full_message(run_dir)) from error
        raise
