"""A cache of encoded rows on disk: written completely or not at all, shared by all processes, limited in size."""

import atexit
import errno
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from pydantic import TypeAdapter

from swiftplug.data.read.report import SplitReport
from swiftplug.errors import UserError

ROWS = "rows.arrow"
REPORT = "report.json"
SPLIT_REPORT = TypeAdapter(SplitReport)

LIMIT = 20_000_000_000  # bytes

# Where a file system has no locks, entries are read all the same, but none is removed.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

# The locks on the entries that this process reads, held until it exits, by device and inode.
_in_use: dict[tuple[int, int], ExitStack] = {}


class StoredRows(NamedTuple):
    """An entry of the store: the examples, read from disk as needed, and the report about their rows."""

    examples: Dataset
    report: SplitReport

    @property
    def folder(self) -> Path:
        """The entry's folder; its name is the key."""
        return Path(self.examples.cache_files[0]["filename"]).parent


class EncodedStore:
    """A folder of encoded datasets, each under a key that covers everything that affects it.

    An entry is written to a temporary folder and renamed when complete, so a killed process leaves no partial entry. If
    several processes need the same entry, one makes it and the others wait. If the folder is read-only, or another
    user's file is in the way, its entries are still used where they can be read, and new ones go to a temporary folder
    that is removed when the process exits. Above the size limit, the least recently used entries are removed, except
    those that a running process uses.

    Args:
        folder: The folder; by default `$SWIFTPLUG_CACHE`, else `~/.cache/swiftplug/data`.
        limit: Maximum size of all entries in bytes.
    """

    def __init__(self, folder: str | None = None, limit: int = LIMIT) -> None:
        self.folder = Path(folder or os.environ.get("SWIFTPLUG_CACHE") or "~/.cache/swiftplug/data").expanduser()
        self.limit = limit
        self.notes: list[str] = []

    def find(self, key: str) -> StoredRows | None:
        """The entry of a key, if there is one that others may use too."""
        return _open(self.folder / key)

    def get(self, key: str, make: Callable[[SplitReport], Generator[pa.RecordBatch, None, None]]) -> StoredRows:
        """The entry of a key, made if it does not exist.

        Args:
            key: Letters, digits and hyphens.
            make: Yields the examples, and fills in the report.

        Raises:
            UserError: The entry cannot be written.
        """
        stored = self.find(key)
        if stored is None:
            self._clean_up()
            with self._locked(key) as entry:
                stored = _open(entry) or _make(entry, make)
            self._clean_up()
        return stored

    @contextmanager
    def _locked(self, key: str) -> Iterator[Path]:
        """The place of an entry, locked, and with nothing there that cannot be read."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._lock(key))
                entry = self._writable / key
                if entry.is_dir() and _open(entry) is None:
                    shutil.rmtree(entry)  # damaged
            except PermissionError as error:  # the lock or the entry is another user's
                self._writable = self._private_folder(error)
                stack.enter_context(self._lock(key))
            yield self._writable / key

    @cached_property
    def _writable(self) -> Path:
        """The folder for new entries."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            return self._private_folder(error)
        return self.folder

    def _private_folder(self, error: OSError) -> Path:
        self.notes.append(f"cannot write the data cache {self.folder} ({error.strerror}): encoded for this run only")
        folder = tempfile.mkdtemp(prefix="swiftplug-data-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def _lock(self, key: str, blocking: bool = True) -> FileLock:
        return FileLock(self._writable / f"{key}.lock", blocking=blocking)

    def _clean_up(self) -> None:
        """Remove partial entries of killed processes, and the oldest entries above the size limit."""
        entries = []
        for folder in [*self._writable.iterdir()]:
            with suppress(OSError):  # not a folder, locked, or just removed by another process
                names = {path.name for path in folder.iterdir()}
                if folder.is_symlink() or not names <= {ROWS, REPORT}:
                    continue  # the folder may hold other files than the store's
                if folder.suffix == ".part":
                    with self._lock(folder.name.partition(".")[0], blocking=False):
                        shutil.rmtree(folder)
                elif names == {ROWS, REPORT}:
                    entries.append((folder / ROWS, (folder / ROWS).stat()))
        total = sum(stat.st_size for _, stat in entries)
        for rows, stat in sorted(entries, key=lambda entry: entry[1].st_mtime_ns):
            if total <= self.limit:
                return
            # OSError: another process is making the entry, uses it, or has just removed it.
            with suppress(OSError), self._lock(rows.parent.name, blocking=False), rows.open("r+b") as unused:
                _lock_file(unused, exclusive=True)
                shutil.rmtree(rows.parent)
                total -= stat.st_size


def _open(entry: Path) -> StoredRows | None:
    """The entry, if it exists and is complete; it is locked against removal until this process exits."""
    rows = entry / ROWS
    try:
        with ExitStack() as lock:
            _lock_file(lock.enter_context(rows.open("rb")), exclusive=False)
            facts = json.loads((entry / REPORT).read_text(encoding="utf-8"))
            if rows.stat().st_size != facts["bytes"]:
                return None
            stored = StoredRows(Dataset.from_file(str(rows)), SPLIT_REPORT.validate_python(facts["report"]))
            file = rows.stat()
            if (file.st_dev, file.st_ino) not in _in_use:
                _in_use[file.st_dev, file.st_ino] = lock.pop_all()
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError, KeyError):
        return None
    with suppress(OSError):  # the folder is read-only
        os.utime(rows)
    return stored


def _make(entry: Path, make: Callable[[SplitReport], Generator[pa.RecordBatch, None, None]]) -> StoredRows:
    part = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}.part")
    with _naming_folder(part):
        part.mkdir()  # with the permissions that the user gives new folders; those of `mkdtemp` shut out other users
    report = SplitReport()
    try:
        with pa.OSFile(str(part / ROWS), "wb") as file, ArrowWriter(stream=file) as writer:
            with closing(make(report)) as batches:
                for batch in batches:
                    with _naming_folder(part):
                        writer.write_table(pa.Table.from_batches([batch]))
            with _naming_folder(part):
                writer.finalize(close_stream=False)
        with _naming_folder(part):
            with (part / ROWS).open("rb") as written:  # the file of older pyarrow has no descriptor
                os.fsync(written.fileno())
            facts = {"bytes": (part / ROWS).stat().st_size, "report": SPLIT_REPORT.dump_python(report)}
            (part / REPORT).write_text(json.dumps(facts), encoding="utf-8")
            part.rename(entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    stored = _open(entry)
    if stored is None:
        raise UserError(f"{entry}: cannot be read after it was written; data.cache_dir chooses another folder")
    return stored


def _lock_file(file: IO[bytes], exclusive: bool) -> None:
    """Lock a file until it is closed; raises an OSError if an exclusive lock is not available."""
    if sys.platform != "win32":  # Windows does not delete open files anyway
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        except OSError as error:
            if exclusive or error.errno not in _NO_LOCKS:
                raise


@contextmanager
def _naming_folder(folder: Path) -> Iterator[None]:
    """Report a full disk or similar as a `UserError` that names the folder and the option for another one."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; data.cache_dir chooses another folder"
        ) from error
