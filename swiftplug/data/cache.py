"""Encoded datasets on disk: written once, complete or not there at all, shared by all processes."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset
from filelock import FileLock, Timeout

from swiftplug.errors import UserError

ROWS = "rows.arrow"
FACTS = "facts.json"


class Cached(NamedTuple):
    """An entry of the cache.

    Attributes:
        rows: The examples, read from disk as they are needed.
        facts: What was noted when they were made, of JSON types.
    """

    rows: Dataset
    facts: dict[str, Any]


class Cache:
    """A folder of datasets, each under a key of everything that changes it.

    An entry is made in a folder of its own and renamed when complete, so that whatever stops the making of it leaves no
    entry. Of several processes that want the same, one makes it and the others wait. Where the folder cannot be
    written, what it holds is still read, and new entries go to a temporary folder that ends with the process.

    Args:
        folder: Where to keep them; None: `$SWIFTPLUG_CACHE`, else `~/.cache/swiftplug/data`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = Path(folder or os.environ.get("SWIFTPLUG_CACHE") or "~/.cache/swiftplug/data").expanduser()
        self.notes: list[str] = []

    @cached_property
    def writable(self) -> Path:
        """The folder for new entries."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            self.notes.append(
                f"cannot write the data cache {self.folder} ({error.strerror}): encoded for this run only"
            )
            folder = tempfile.mkdtemp(prefix="swiftplug-data-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return Path(folder)
        return self.folder

    def get(self, key: str, make: Callable[[Path], dict[str, Any]]) -> Cached:
        """The entry of a key, made if it is not there.

        Args:
            key: Letters and digits.
            make: Writes the rows to a path (see `write_rows`) and returns the facts.

        Raises:
            UserError: There is no room to write it.
        """
        found = _read(self.folder / key)
        if found is not None:
            return found
        with FileLock(_lock_of(self.writable / key)):
            return _read(self.writable / key) or _make(self.writable / key, make)


def write_rows(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches of one schema to an Arrow file, as they come.

    Raises:
        UserError: The disk is full, or the like.
    """
    writer = None
    with pa.OSFile(str(path), "wb") as file:
        for batch in batches:
            with _telling_of_disks(path):
                writer = writer or pa.ipc.new_stream(file, batch.schema)
                writer.write_batch(batch)
        with _telling_of_disks(path):
            if writer is not None:
                writer.close()
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _make(entry: Path, make: Callable[[Path], dict[str, Any]]) -> Cached:
    _clear_leftovers(entry)
    shutil.rmtree(entry, ignore_errors=True)  # it is torn, if it is there
    part = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=".part", dir=entry.parent))
    try:
        facts = make(part / ROWS)
        with _telling_of_disks(part):
            told = json.dumps({"bytes": (part / ROWS).stat().st_size, "facts": facts})
            (part / FACTS).write_text(told, encoding="utf-8")
            part.rename(entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Cached(Dataset.from_file(str(entry / ROWS)), facts)


def _clear_leftovers(entry: Path) -> None:
    """Remove what killed processes had begun: this entry, whose lock is held here, and others that nobody locks."""
    for part in entry.parent.glob("*.part"):
        of = entry.with_name(part.name.partition(".")[0])
        with suppress(Timeout), nullcontext() if of == entry else FileLock(_lock_of(of), blocking=False):
            shutil.rmtree(part, ignore_errors=True)


def _lock_of(entry: Path) -> Path:
    return entry.with_suffix(".lock")


def _read(entry: Path) -> Cached | None:
    """The entry, if it is there and whole."""
    try:
        told = json.loads((entry / FACTS).read_text(encoding="utf-8"))
        if (entry / ROWS).stat().st_size != told["bytes"]:
            return None
        return Cached(Dataset.from_file(str(entry / ROWS)), told["facts"])
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def _telling_of_disks(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; data.cache_dir chooses another place"
        ) from error
