"""Training examples that are read, encoded and shuffled as they are needed, for data that no disk holds.

Rows are read in windows of `data.shuffle_buffer` rows, again from the start when they end. The examples of a window are
encoded, packed and put in order as those of an epoch are. Where a window begins can be saved, so a resumed run reads
the same window again and goes on in it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable

from swiftplug.data.batching import EpochSampler
from swiftplug.data.read.conversation import RawRow
from swiftplug.data.read.sources import Source
from swiftplug.errors import UserError

STREAM = "stream.json"
State = dict[str, Any]
"""What JSON can hold."""


class Reader:
    """The rows of sources, one source after the other, again and again, from a place that can be saved.

    Args:
        sources: The sources.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.go_to({"source": 0, "rows": 0})

    def go_to(self, place: State) -> None:
        """Continue at a place that `place` gave."""
        self._begun, self._number, self._read = place, place["source"], place["rows"]
        source = self._sources[self._number]
        self._stream = source.stream() if source.stream is not None else None
        self._rows = source.read_on(self._stream, self._read, place.get("stream"))

    def place(self) -> State:
        """Where the next row is read."""
        place = {"source": self._number, "rows": self._read}
        if self._read == self._begun["rows"]:
            return self._begun  # a stream knows where it is only when a row was read of it
        return place | {"stream": self._stream.state_dict()} if self._stream is not None else place

    def take(self, count: int) -> Iterator[RawRow]:
        """The next rows; raises a UserError if a source has none."""
        while count:
            for row in islice(self._rows, count):
                self._read += 1
                count -= 1
                yield row
            if count:
                if not self._read:
                    raise UserError(f"{self._sources[self._number].name}: the dataset is empty")
                self.go_to({"source": (self._number + 1) % len(self._sources), "rows": 0})


@dataclass
class ExampleStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Endless examples, in an order that depends only on the rows, the seed and the size of a step.

    Attributes:
        readers: What rows come from.
        counts: The number of rows that a window has of each reader.
        encode: Makes the columns of examples from rows.
        seed: The run's seed.
        group_by_length: Whether to group examples of similar length into steps.
        batch_size: Number of examples in a step, over all its micro-batches and processes.
    """

    readers: Sequence[Reader]
    counts: Sequence[int]
    encode: Callable[[Iterator[RawRow]], pa.Table]
    seed: int
    group_by_length: bool
    batch_size: int = 1
    _begun: list[State] = field(default_factory=list)  # the windows that may have to be read again
    _window: int = 0
    _examples: int = 0  # in the windows before
    _skipped: int = 0
    _first: Dataset | None = None

    def first(self) -> Dataset:
        """The examples of the first window."""
        if self._first is None:
            self._first = self._read()
        return self._first

    def save(self, folder: Path, examples: int) -> None:
        """Write where a run goes on that has trained so many examples."""
        while self._begun[1:] and self._begun[1]["examples"] <= examples:
            del self._begun[0]
        state = self._begun[0] | {"skipped": examples - self._begun[0]["examples"]}
        (folder / STREAM).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Go on where `save` said."""
        state = json.loads((folder / STREAM).read_text(encoding="utf-8"))
        for reader, place in zip(self.readers, state["places"], strict=True):
            reader.go_to(place)
        self._window, self._examples, self._skipped = state["window"], state["examples"], state["skipped"]
        self._begun, self._first = [], None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            rows, self._first = self._first or self._read(), None
            order = EpochSampler(rows["length"], self.batch_size, self.seed, self.group_by_length)
            order.set_epoch(self._window)
            skipped, self._skipped = self._skipped, 0
            self._window += 1
            self._examples += len(rows)
            for index in islice(order, skipped, None):
                yield rows[index]

    def _read(self) -> Dataset:
        places = [reader.place() for reader in self.readers]
        self._begun.append({"places": places, "window": self._window, "examples": self._examples})
        rows = (row for reader, count in zip(self.readers, self.counts, strict=True) for row in reader.take(count))
        table = InMemoryTable(self.encode(rows))
        return Dataset(table, fingerprint=f"window-{self._window}").with_format("numpy")  # else it would hash the table
