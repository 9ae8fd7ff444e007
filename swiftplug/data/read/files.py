"""Read rows from JSON, CSV, Parquet and Arrow files, one row at a time."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftplug.data.read.conversation import RawRow, RowOrigin, load_json
from swiftplug.data.read.formats import COLUMNS
from swiftplug.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ARROW_BATCH = 256
LONGEST_CELL = 2**31 - 1  # by default the csv module refuses cells above 128 KiB
BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
WRAPPERS = ("data", "rows", "examples", "instances")
"""Keys under which the object of a JSON file may have the list of its rows."""


class IncompleteLineError(UserError):
    """The last line of a JSON file is broken and does not end: whoever wrote it was stopped.

    Attributes:
        place: The line, as `file:line`.
    """

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message)
        self.place = place


def read_json(path: Path) -> Iterator[RawRow]:
    """Read one object per line, or one list of objects, which may be `data` of an object; blank lines are skipped.

    Every line is parsed on its own, so rows may differ in their columns and types.

    Raises:
        UserError: A line is not JSON or not UTF-8, or an object in it has a key twice.
    """
    with _open(path) as file:
        if (rows := _rows_of_one_value(file, path)) is not None:
            yield from (RawRow(row, RowOrigin(str(path), number)) for number, row in enumerate(rows, 1))
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            text = _decode(line.removeprefix(BOM) if number == 1 else line, path, number)
            if text.strip():
                yield RawRow(_parse(text, path, number), RowOrigin(str(path), number))


def read_csv(path: Path, delimiter: str = ",") -> Iterator[RawRow]:
    """Read a CSV file whose first line names the columns; all values are strings.

    A row with more or fewer cells than columns becomes a list, which is reported later as an unusable row.

    Raises:
        UserError: The file is not UTF-8, not CSV, has a duplicate column, or separates its cells differently.
    """
    csv.field_size_limit(LONGEST_CELL)
    with _open(path) as file:
        lines = (_decode(line, path, number) for number, line in enumerate(file, 1))
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        try:
            header = [name.removeprefix("\ufeff").strip() for name in next(reader, [])]
            if len(set(header)) < len(header):
                raise UserError(f"{path}:1: a column is named twice: {', '.join(header)}")
            other = next((each for each in ";\t," if each != delimiter and each in "".join(header)), None)
            if other and len(header) == 1:
                cause = f"cells are separated by {other!r}, expected ',' (in a .tsv file '\\t')"
                raise UserError(f"{path}:1: {cause}: {header[0]!r:.60}")
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    row = dict(zip(header, cells, strict=True)) if len(cells) == len(header) else cells
                    yield RawRow(row, RowOrigin(str(path), line))
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Read a Parquet file; its rows are numbered from 1.

    Raises:
        UserError: The file is not Parquet, or the values of a column cannot be read.
    """
    import pyarrow as pa  # takes a second, which plain files do not need
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from arrow_rows(file.iter_batches(ARROW_BATCH), str(path))
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from None


def read_arrow(path: Path) -> Iterator[RawRow]:
    """Read an Arrow file, as `datasets` or Feather write it; its rows are numbered from 1.

    Raises:
        UserError: The file is not Arrow, or the values of a column cannot be read.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            is_stream = file.read(6) != b"ARROW1"
            file.seek(0)
            table = pa.ipc.open_stream(file).read_all() if is_stream else pa.ipc.open_file(file).read_all()
            yield from arrow_rows(table.to_batches(ARROW_BATCH), str(path))
    except pa.ArrowException as error:
        raise UserError(f"{path}: not an Arrow file: {str(error).splitlines()[0]}") from None


def arrow_rows(batches: "Iterable[pa.RecordBatch | pa.Table]", name: str, number: int = 0) -> Iterator[RawRow]:
    """The rows of Arrow tables as plain Python values, numbered from 1, or behind the given number.

    Nulls are left out where Arrow fills them in because the rows of a column have different keys: in columns and
    structs. Those in JSON values, maps and lists are real. Classes that `datasets` has names for (`ClassLabel`) are
    these names.

    Raises:
        UserError: The values of a column cannot be read.
    """
    for batch in batches:
        names = batch.schema.names
        if len(set(names)) < len(names):
            raise UserError(f"{name}: a column is named twice: {', '.join(names)}")
        columns = []
        classes = _class_names(batch.schema)
        for field, column in zip(batch.schema, batch.columns, strict=True):
            try:
                convert = classes.get(field.name) or _converter(field.type)
                columns.append([convert(value) for value in column.to_pylist()])
            except Exception as error:  # dates out of range, repeated keys, types that Arrow cannot convert
                cause = " ".join(str(error).split())
                raise UserError(f"{name}: cannot read column {field.name!r} of type {field.type}: {cause}") from error
        for values in zip(*columns, strict=True):
            number += 1
            row = {key: value for key, value in zip(names, values, strict=True) if value is not None}
            yield RawRow(row, RowOrigin(name, number))


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def reader_of(path: Path) -> Callable[[Path], Iterator[RawRow]] | None:
    """The function that reads files of this name; None if there is none. Text files may be compressed, as `.gz`."""
    name = Path(path.name.lower())
    if name.suffix != ".gz":
        return READERS.get(name.suffix)
    suffix = Path(name.stem).suffix
    return READERS.get(suffix) if suffix not in (".parquet", ".arrow") else None


def _class_names(schema: "pa.Schema") -> dict[str, Callable[[Any], Any]]:
    """By column of classes that `datasets` has names for, the function that turns its numbers into names."""
    if b'"ClassLabel"' not in (schema.metadata or {}).get(b"huggingface", b""):
        return {}
    from datasets import ClassLabel, Features  # takes a second, which other files do not need

    def convert(names: list[str], value: Any) -> Any:
        if isinstance(value, list):
            return [convert(names, each) for each in value]
        return names[value] if value is not None and value >= 0 else None  # -1 is no label

    features = {name: getattr(each, "feature", each) for name, each in Features.from_arrow_schema(schema).items()}
    return {name: partial(convert, each.names) for name, each in features.items() if isinstance(each, ClassLabel)}


def _converter(kind: "pa.DataType") -> Callable[[Any], Any]:
    """The function that makes a plain value of what Arrow gives for a type; null stays null."""
    convert = _converter_of_values(kind)
    return lambda value: None if value is None else convert(value)


def _converter_of_values(kind: "pa.DataType") -> Callable[[Any], Any]:
    import pyarrow as pa
    from pyarrow import types

    if isinstance(kind, pa.JsonType):
        return load_json
    if isinstance(kind, pa.BaseExtensionType):
        return _converter(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _converter(kind.value_type)
    if types.is_map(kind):
        key, item = _converter(kind.key_type), _converter(kind.item_type)
        return lambda pairs: {key(name): item(value) for name, value in pairs}
    if types.is_struct(kind):
        fields = {field.name: _converter(field.type) for field in kind}
        return lambda value: {name: fields[name](each) for name, each in value.items() if each is not None}
    if types.is_nested(kind) and not types.is_union(kind):
        each = _converter(kind.value_type)
        return lambda values: [each(value) for value in values]
    return _plain


def _plain(value: Any) -> Any:
    """A value that JSON has, for one of Arrow's: dates and times as ISO 8601, bytes as text if they are UTF-8."""
    from decimal import Decimal

    if isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


@contextmanager
def _open(path: Path) -> Iterator[BufferedReader]:
    """Open a file, through gzip if it is compressed."""
    with path.open("rb") as file:
        is_compressed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if not is_compressed:
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                yield BufferedReader(unpacked)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: not a complete gzip file: {error}") from None


def _rows_of_one_value(file: BufferedReader, path: Path) -> list[Any] | None:
    """The rows of a file that is one JSON value, a list or an object; None if it has one row per line."""
    lines = enumerate(file, 1)
    number, first = next(((number, line) for number, line in lines if line.removeprefix(BOM).strip()), (1, b""))
    first = first.removeprefix(BOM)
    if first.lstrip()[:1] not in (b"[", b"{"):
        return None
    try:
        value = load_json(first)
        if any(line.strip() for _, line in lines):
            return None
    except (ValueError, RecursionError):
        value = _parse(_decode(first + file.read(), path, number), path, number)
    if isinstance(value, dict):
        wrapped = [value[key] for key in WRAPPERS if isinstance(value.get(key), list)]
        value = wrapped[0] if len(wrapped) == 1 and not COLUMNS & value.keys() else [value]
    return list(value)


def _decode(raw: bytes, path: Path, line: int) -> str:
    """Decode bytes that begin on the given line of the file."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        column = error.start - raw.rfind(b"\n", 0, error.start)
        cause = f"not UTF-8 text: byte {raw[error.start]:#04x} at {column}"
        raise _broken(f"{path}:{line}", cause, raw.endswith(b"\n")) from None


def _parse(text: str, path: Path, line: int) -> Any:
    """Parse JSON text that begins on the given line of the file."""
    try:
        return load_json(text)
    except (ValueError, RecursionError) as error:
        cause, expected, ended = str(error), "", text.endswith("\n")
        if isinstance(error, json.JSONDecodeError):
            cause = f"{error.msg} at column {error.colno}"
            expected = f"; expected {'a list of rows, or ' if path.suffix == '.json' else ''}one object per line"
            line += error.lineno - 1
            text = text.split("\n")[error.lineno - 1]
        found = text.strip()
        shown = found if len(found) <= 40 else f"{found[:37]}..."
        cause = f"not JSON: {cause}: {shown!r}{expected}"
        raise _broken(f"{path}:{line}", cause, ended) from None


def _broken(place: str, cause: str, is_ended: bool) -> UserError:
    message = f"{place}: {cause}"
    return UserError(message) if is_ended else IncompleteLineError(message, place)
