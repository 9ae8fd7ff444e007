"""Read rows from JSON, CSV and Parquet files, one row at a time."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swiftplug.data.read.conversation import RawRow, RowOrigin
from swiftplug.errors import UserError

PARQUET_BATCH = 256
LONGEST_CELL = 2**31 - 1  # by default the csv module refuses cells above 128 KiB
BOM = b"\xef\xbb\xbf"


def read_json(path: Path) -> Iterator[RawRow]:
    """Read one object per line, or one list of objects; blank lines are skipped.

    Every line is parsed on its own, so rows may differ in their columns and types.

    Raises:
        UserError: A line is not JSON or not UTF-8.
    """
    with path.open("rb") as file:
        is_list = file.read(4096).removeprefix(BOM).lstrip().startswith(b"[")
        file.seek(0)
        if is_list:
            rows = _parse(_decode(file.read().removeprefix(BOM), path, 1), path, 1)
            yield from (RawRow(row, RowOrigin(str(path), number)) for number, row in enumerate(rows, 1))
            return
        for number, line in enumerate(file, 1):
            text = _decode(line.removeprefix(BOM) if number == 1 else line, path, number)
            if text.strip():
                yield RawRow(_parse(text, path, number), RowOrigin(str(path), number))


def read_csv(path: Path) -> Iterator[RawRow]:
    """Read a CSV file whose first line names the columns; all values are strings.

    A row with more or fewer cells than columns becomes a list, which is reported later as an unusable row.

    Raises:
        UserError: The file is not UTF-8, not CSV, or has a duplicate column.
    """
    csv.field_size_limit(LONGEST_CELL)
    with path.open("rb") as file:
        reader = csv.reader((_decode(line, path, number) for number, line in enumerate(file, 1)), strict=True)
        try:
            header = [name.removeprefix("\ufeff").strip() for name in next(reader, [])]
            if len(set(header)) < len(header):
                raise UserError(f"{path}:1: a column is named twice: {', '.join(header)}")
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
        UserError: The file is not Parquet.
    """
    import pyarrow as pa  # these imports take a second, which plain files do not need
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        with pq.ParquetFile(path) as file:
            features = Features.from_arrow_schema(file.schema_arrow)
            rows = (row for batch in file.iter_batches(PARQUET_BATCH) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield RawRow(without_nulls(features.decode_example(row)), RowOrigin(str(path), number))
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from None


READERS = {
    ".jsonl": read_json,
    ".json": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def without_nulls(value: Any) -> Any:
    """A value from Arrow without the nulls that Arrow adds where the rows of a column have different keys."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _decode(raw: bytes, path: Path, line: int) -> str:
    """Decode bytes that begin on the given line of the file."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not UTF-8 text: byte {raw[error.start]:#04x} at {column}") from None


def _parse(text: str, path: Path, line: int) -> Any:
    """Parse JSON text that begins on the given line of the file."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        cause = str(error)
        if isinstance(error, json.JSONDecodeError):
            cause = f"{error.msg} at column {error.colno}"
            line += error.lineno - 1
            text = text.split("\n")[error.lineno - 1]
        found = text.strip()
        shown = found if len(found) <= 40 else f"{found[:37]}..."
        expected = "one object per line" if path.suffix != ".json" else "a list of rows, or one object per line"
        raise UserError(f"{path}:{line}: not JSON: {cause}: {shown!r}; expected {expected}") from None
