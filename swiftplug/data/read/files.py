"""Files of rows, read one row at a time."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swiftplug.data.read.conversation import RawRow, RowOrigin
from swiftplug.errors import UserError

PARQUET_BATCH = 256
LONGEST_CELL = 2**31 - 1  # csv refuses cells above 128 KiB unless told otherwise
BOM = b"\xef\xbb\xbf"


def read_json(path: Path) -> Iterator[RawRow]:
    """One object a line, or one list of objects; blank lines are skipped.

    Every line is parsed by itself, so rows may differ in their columns and in the types of them.

    Raises:
        UserError: A line is not JSON or not UTF-8.
    """
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(BOM).lstrip()
    if start.startswith(b"["):
        yield from _read_json_list(path)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = _decoded(line.removeprefix(BOM) if number == 1 else line, f"{path}:{number}")
            if text.strip():
                yield RawRow(_parsed(text, path, number), RowOrigin(str(path), number))


def read_csv(path: Path) -> Iterator[RawRow]:
    """Rows of a CSV file whose first line names the columns; all values are text.

    A row with more or fewer cells than columns is passed on as a list, which no format of rows is.

    Raises:
        UserError: The file is not UTF-8, not CSV, or names a column twice.
    """
    csv.field_size_limit(LONGEST_CELL)
    with path.open("rb") as file:
        lines = (_decoded(line, f"{path}:{number}") for number, line in enumerate(file, 1))
        reader = csv.reader(lines, strict=True)
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
    """Rows of a Parquet file, numbered from 1.

    Raises:
        UserError: The file is not Parquet.
    """
    import pyarrow as pa  # these take a second, which reading plain files should not
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        with pq.ParquetFile(path) as file:
            features = Features.from_arrow_schema(file.schema_arrow)
            number = 0
            for batch in file.iter_batches(PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
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
    """A value from Arrow without the nulls that it fills in where rows of a column differ in their keys."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _read_json_list(path: Path) -> Iterator[RawRow]:
    text = _decoded(path.read_bytes().removeprefix(BOM), str(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
    for number, row in enumerate(rows, 1):
        yield RawRow(row, RowOrigin(str(path), number))


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: byte {raw[error.start]:#04x} at {error.start + 1}") from None


def _parsed(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        cause = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        found = text.strip()
        shown = found if len(found) <= 40 else f"{found[:37]}..."
        expected = "one object a line" if path.suffix != ".json" else "a list of rows, or one object a line"
        raise UserError(f"{path}:{number}: not JSON: {cause}: {shown!r}; expected {expected}") from None
