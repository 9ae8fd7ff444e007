"""Open a dataset that a config names: a file, a folder, a hub id or a plugin."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import compress, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftplug.data.read.conversation import RawRow, RowOrigin
from swiftplug.data.read.files import ARROW_BATCH, READERS, arrow_rows, read_json, reader_of
from swiftplug.errors import UserError, broken_link, closest, nearest
from swiftplug.formatting import format_count
from swiftplug.plugin.registry import PluginChoice, Registry, describe_error

if TYPE_CHECKING:
    import numpy as np
    from datasets import IterableDataset

FIRST_ROWS = 256  # enough to know the columns: Arrow leaves out those without a value
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """A dataset that exists and is not read yet.

    Attributes:
        name: The name in the config.
        fingerprint: Changes whenever the rows may have changed.
        read: Reads the rows, from the first one at every call.
        stream: Opens a dataset that is streamed, whose state says where to go on; None where rows are read from a file.
    """

    name: str
    fingerprint: str
    read: Callable[[], Iterator[RawRow]]
    stream: "Callable[[], IterableDataset] | None" = None

    def read_on(self, stream: "IterableDataset | None", rows: int, state: dict[str, Any] | None) -> Iterator[RawRow]:
        """The rows behind the first ones: of a stream by its state, of a file by reading it up to there."""
        if stream is None:
            return islice(self.read(), rows, None)
        if state is not None:
            stream.load_state_dict(state)
        return arrow_rows(stream, self.name, rows)


def open_source(choice: PluginChoice, registry: Registry, where: str = "dataset", streaming: bool = False) -> Source:
    """Find a dataset by its name.

    The name may be, tried in this order, a dataset plugin, a file, a folder laid out like a hub repository, or a hub
    id. `#N` at the end takes the first N rows. `:SUBSET/SPLIT` after a folder or hub id chooses a part of it, by
    default the split `train` of the only subset. `@REVISION` right after a hub id pins a branch, tag or commit.

    Args:
        choice: The name, and the options of a plugin.
        registry: Finds plugins.
        where: The key or option that names the dataset, for errors.
        streaming: Whether to stream what is on the hub, in place of downloading it.

    Returns:
        The source. A file's fingerprint is a hash of its content.

    Raises:
        UserError: There is no such dataset, or it cannot be read.
    """
    limit = re.fullmatch(r"(.+)#([^#/\\]*)", choice.name)
    if limit is None or Path(choice.name).exists():
        return _open(choice, registry, where, streaming)
    name, count = limit.groups()
    if not count.isdecimal() or int(count) == 0:
        raise UserError(f"{where}: {choice.name!r}: expected a number of rows, 1 or more, after '#', found {count!r}")
    source = _open(choice.model_copy(update={"name": name}), registry, where, streaming)
    opened = source.stream
    return Source(
        choice.name,
        f"{source.fingerprint}#{count}",
        lambda: islice(source.read(), int(count)),
        None if opened is None else lambda: opened().take(int(count)),
    )


def _open(choice: PluginChoice, registry: Registry, where: str, streaming: bool) -> Source:
    name = choice.name
    if registry.has("dataset", name):
        return _open_plugin(choice, registry, where, streaming)
    if choice.options:
        option = next(iter(choice.options))
        raise UserError(f"{where}: {name!r} is no dataset plugin and takes no options, found {option!r}")
    path = Path(name).expanduser()
    if link := broken_link(path):
        raise UserError(f"{where}: {name!r}{link}")
    if path.is_file():
        return _open_file(path, where, streaming)
    location, _, part = name.rpartition(":") if ":" in name else (name, "", "")
    folder = Path(location).expanduser()
    if folder.is_dir():
        return _open_repository(name, str(folder), part, where, streaming=streaming)
    if (hub := HUB_ID.fullmatch(location)) and reader_of(path) is None:
        return _open_repository(name, hub[1], part, where, revision=hub[2], streaming=streaming)
    raise UserError(f"{where}: no such file, folder, hub id or dataset plugin: {name!r}{_suggest_name(path, registry)}")


def _suggest_name(path: Path, registry: Registry) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {str(path.parent)!r})"
    names = [each.name for each in path.parent.iterdir()] + [found.name for found in registry.found("dataset")]
    return closest(path.name, names)


def _open_file(path: Path, where: str, streaming: bool) -> Source:
    reader = reader_of(path)
    if reader is None:
        kinds = f"{', '.join(READERS)}; text files also as .gz"
        raise UserError(f"{where}: {path}: unknown kind of file {path.suffix!r}; expected one of {kinds}")
    # The name is part of the fingerprint because stored reports contain it.
    return Source(str(path), f"{path}:{_hash(path, where, streaming)}", lambda: reader(path))


def _hash(path: Path, where: str, streaming: bool) -> str:
    """What changes with a file: what it holds or, as one that is streamed may be large, its size and time."""
    try:
        if streaming:
            return f"{path.stat().st_size}:{path.stat().st_mtime_ns}"
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{where}: cannot read {path}: {error.strerror}") from None


def _open_repository(
    name: str, location: str, part: str, where: str, revision: str | None = None, streaming: bool = False
) -> Source:
    """A hub repository, a folder like one, or a folder that `save_to_disk` wrote."""
    from datasets import load_dataset

    folder = Path(location)
    subset, _, split = part.partition("/")
    try:
        if any((folder / saved).is_file() for saved in ("state.json", "dataset_dict.json")):
            return _open_dataset(name, _load_from_disk(folder, part.removeprefix("/")))
        here = not streaming or folder.is_dir()  # JSON files of the hub would be downloaded
        if here and (files := _json_files(location, subset or None, split or "train", revision)):
            return _open_json_files(name, files, where, streaming)
        chosen = {"name": subset or None, "split": split or "train", "revision": revision}
        loaded = load_dataset(location, streaming=streaming, **chosen)
    except UserError:
        raise
    except Exception as error:  # file formats, the network and the hub raise anything
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where}: cannot load {name!r}: {cause}") from error
    return _open_dataset(name, loaded)


def _load_from_disk(folder: Path, split: str) -> Any:
    from datasets import Dataset, load_from_disk

    loaded = load_from_disk(folder)
    if isinstance(loaded, Dataset):
        if split:
            raise ValueError(f"it is one dataset without splits, found {split!r} after its name")
        return loaded
    if (split or "train") not in loaded:
        raise ValueError(f"no split {split or 'train'!r} ({folder}:NAME names one){nearest(split or 'train', loaded)}")
    return loaded[split or "train"]


def _json_files(location: str, subset: str | None, split: str, revision: str | None) -> dict[str, Path]:
    """The files of a split, by name, if they are plain JSON: read as such they keep their nulls and line numbers."""
    from datasets import DownloadManager, load_dataset_builder
    from datasets.packaged_modules.json.json import Json

    builder = load_dataset_builder(location, name=subset, revision=revision)
    names = list((builder.config.data_files or {}).get(split, []))
    is_plain = isinstance(builder, Json) and not builder.config.features and not builder.config.field
    if not is_plain or any(reader_of(Path(name)) is not read_json for name in names):
        return {}
    return dict(zip(names, map(Path, DownloadManager().download(names)), strict=True))


def _open_json_files(name: str, files: dict[str, Path], where: str, streaming: bool) -> Source:
    def read() -> Iterator[RawRow]:
        for file, path in files.items():
            for row in read_json(path):
                yield row._replace(origin=RowOrigin(file, row.origin.line))

    return Source(name, "\n".join(f"{file}:{_hash(path, where, streaming)}" for file, path in files.items()), read)


def _open_plugin(choice: PluginChoice, registry: Registry, where: str, streaming: bool) -> Source:
    from datasets import Dataset, IterableDataset  # takes a second, which plain files do not need

    plugin = registry.resolve("dataset", choice, where)
    try:
        loaded = plugin.bound()
    except Exception as error:  # a plugin may raise anything
        raise UserError(f"{where}: {plugin.found} failed: {describe_error(error)}") from error
    if not isinstance(loaded, Dataset | IterableDataset if streaming else Dataset):
        hint = " (data.streaming takes it)" if isinstance(loaded, IterableDataset) else ""
        raise UserError(f"{where}: {plugin.found} returned {type(loaded).__name__}, expected datasets.Dataset{hint}")
    # What it has in a buffer is in no state of the library, so it is read from the start to go on.
    return replace(_open_dataset(choice.name, loaded), stream=None)


def _open_dataset(name: str, loaded: Any) -> Source:
    from datasets import Dataset

    rows = loaded.with_format("arrow")
    if not isinstance(loaded, Dataset):
        return Source(name, name, lambda: arrow_rows(rows, name), lambda: loaded.with_format("arrow"))
    return Source(name, f"{name}:{loaded._fingerprint}", lambda: arrow_rows(rows.iter(ARROW_BATCH), name))


def check_columns(columns: Mapping[str, str], sources: Sequence[Source]) -> None:
    """Raise a UserError for a column to rename that is in none of the first rows of any dataset."""
    firsts = [row.row for source in sources if columns for row in islice(source.read(), FIRST_ROWS)]
    known = {name for row in firsts if isinstance(row, dict) for name in row}
    for old in columns:
        if firsts and old not in known:
            raise UserError(f"data.columns: no dataset has a column {old!r}{nearest(old, known)}")


def concatenate(sources: Sequence[Source]) -> Source:
    """Combine sources, one after the other. Reading raises a `UserError` if one has no rows."""

    def read() -> Iterator[RawRow]:
        for source in sources:
            empty = True
            for row in source.read():
                empty = False
                yield row
            if empty:
                raise UserError(f"{source.name}: the dataset is empty")

    name = ", ".join(dict.fromkeys(source.name for source in sources))
    return Source(name, "\n".join(source.fingerprint for source in sources), read)


def hold_out(source: Source, val_size: float | int, seed: int) -> tuple[Source, Source]:
    """Split a source in two: rows to train on, and randomly drawn rows to evaluate on.

    Reading raises a `UserError` if either would be empty.

    Args:
        source: The source; it is read an additional time to count its rows.
        val_size: Fraction (float) or number (int) of rows to hold out.
        seed: The choice depends only on the seed and the number of rows.
    """

    @cache
    def held() -> "np.ndarray":
        import numpy as np  # takes a while, and sampling never holds rows out

        rows = sum(1 for _ in source.read())
        count = round(val_size * rows) if isinstance(val_size, float) else val_size
        if not 0 < count < rows:
            raise UserError(
                f"data.val_size: {val_size} holds out {count} of {format_count(rows, 'row')}; expected 1 to {rows - 1}"
            )
        mask = np.zeros(rows, dtype=bool)
        mask[np.random.default_rng(seed).choice(rows, count, replace=False)] = True
        return mask

    drawn = f"{source.fingerprint}\nheld out {val_size!r} by {seed}"
    train = Source(source.name, f"{drawn}: rest", lambda: compress(source.read(), ~held()))
    return train, Source(source.name, drawn, lambda: compress(source.read(), held()))
