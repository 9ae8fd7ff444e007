"""Packing: several short examples share one row, so that no compute is wasted on padding."""

from bisect import bisect_left, insort
from collections.abc import Generator, Sequence

import numpy as np
import pyarrow as pa

from swiftplug.plugin.loss import IGNORED_LABEL

ROWS_PER_BATCH = 256
UNTRAINED = {"labels": IGNORED_LABEL, "loss_scale": 0}


def pack(lengths: Sequence[int] | np.ndarray, max_length: int) -> list[list[int]]:
    """Assign examples to rows of `max_length` tokens by best-fit decreasing (Johnson, 1974).

    The longest go first, each into the fullest row that still has room for it. This takes at most about 11/9 of the
    minimum number of rows, and hardly more than the minimum on real data. The result depends only on the lengths.

    Args:
        lengths: Number of tokens of each example, at most `max_length`.
        max_length: Number of tokens of a row.

    Returns:
        For each row the indices of its examples.
    """
    lengths = np.asarray(lengths)
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # tokens of room left -> rows
    rooms: list[int] = []  # its keys, sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, row = max_length, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        rows[row].append(index)
        if room - length not in with_room:
            with_room[room - length] = []
            insort(rooms, room - length)
        with_room[room - length].append(row)
    return rows


def packed_batches(table: pa.Table, max_length: int) -> Generator[pa.RecordBatch, None, None]:
    """Pack encoded examples.

    Args:
        table: Columns `input_ids`, `labels`, `length` and optionally `loss_scale`.
        max_length: Number of tokens of a row.

    Yields:
        Batches of rows with the same columns and `position_ids`, which restart at each example. The first token of
        each example is not trained, since the token before it belongs to another example.
    """
    lengths = table["length"].to_numpy()
    columns = {name: _Lists(table[name]) for name in table.column_names if name != "length"}
    rows = pack(lengths, max_length)
    for start in range(0, len(rows), ROWS_PER_BATCH):
        batch = rows[start : start + ROWS_PER_BATCH]
        order = np.concatenate(batch)
        row_lengths = np.array([lengths[indices].sum() for indices in batch])
        offsets = pa.array(np.concatenate([[0], np.cumsum(row_lengths)]), pa.int32())
        ends = np.cumsum(lengths[order])
        firsts = ends - lengths[order]
        packed = {}
        for name, column in columns.items():
            values = column.joined(order)
            if name in UNTRAINED:
                values[firsts] = UNTRAINED[name]
            packed[name] = pa.ListArray.from_arrays(offsets, pa.array(values))
        position_ids = np.arange(ends[-1]) - np.repeat(firsts, lengths[order])
        packed["position_ids"] = pa.ListArray.from_arrays(offsets, pa.array(position_ids, pa.int32()))
        packed["length"] = pa.array(row_lengths, pa.int32())
        yield pa.RecordBatch.from_pydict(packed)


class _Lists:
    """A column of lists as flat arrays, read in place from the file (Arrow's own `take` would copy whole columns)."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.values = [chunk.values.to_numpy() for chunk in column.chunks]
        offsets = [chunk.offsets.to_numpy() for chunk in column.chunks]
        self.starts = np.concatenate([each[:-1] for each in offsets])
        self.ends = np.concatenate([each[1:] for each in offsets])
        self.chunks = np.repeat(np.arange(len(offsets)), [len(each) - 1 for each in offsets])

    def joined(self, order: np.ndarray) -> np.ndarray:
        """The lists at these indices, concatenated."""
        return np.concatenate([self.values[self.chunks[i]][self.starts[i] : self.ends[i]] for i in order])
