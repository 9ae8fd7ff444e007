"""Several sources in one line, and the share of their rows that is held out."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import compress

import numpy as np

from swiftplug.data.read.conversation import RawRow
from swiftplug.data.read.sources import Source
from swiftplug.errors import UserError


def joined(sources: Sequence[Source]) -> Source:
    """One source after another, as one.

    Raises:
        UserError: On reading: a source has no rows.
    """

    def read() -> Iterator[RawRow]:
        for source in sources:
            empty = True
            for row in source.read():
                empty = False
                yield row
            if empty:
                raise UserError(f"{source.name}: the dataset is empty")

    name = ", ".join(source.name for source in sources)
    return Source(name, "\n".join(source.fingerprint for source in sources), read)


def hold_out(source: Source, val_size: float | int, seed: int) -> tuple[Source, Source]:
    """Split a source in two: what to train on, and rows drawn from it to evaluate on.

    Args:
        source: Is read once more than otherwise, to count its rows.
        val_size: A share of the rows (float) or a number of them (int).
        seed: The draw follows from it and from the number of rows alone.

    Raises:
        UserError: On reading: nothing would be held out, or nothing left.
    """

    @cache
    def held() -> np.ndarray:
        rows = sum(1 for _ in source.read())
        count = round(val_size * rows) if isinstance(val_size, float) else val_size
        if not 0 < count < rows:
            raise UserError(f"data.val_size: {val_size} holds out {count} of {rows} rows; expected 1 to {rows - 1}")
        mask = np.zeros(rows, dtype=bool)
        mask[np.random.default_rng(seed).choice(rows, count, replace=False)] = True
        return mask

    drawn = f"{source.fingerprint}\nheld out {val_size!r} by {seed}"
    train = Source(source.name, f"{drawn}: rest", lambda: compress(source.read(), ~held()))
    return train, Source(source.name, drawn, lambda: compress(source.read(), held()))
