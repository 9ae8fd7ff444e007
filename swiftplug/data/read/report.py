"""What became of the rows of a run: how many were read, used, cut or left out, and why."""

from dataclasses import dataclass, field
from pathlib import Path

from swiftplug.data.read.conversation import RowError, RowOrigin

EXAMPLES = 3
SUMS = ("rows", "kept", "examples", "truncated", "split", "shortened", "tokens", "trained_tokens")


@dataclass
class Dropped:
    """Rows that were left out for one reason: their number, and the first few as `file:line (detail)`."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class SplitReport:
    """The counts of one encoded split.

    Attributes:
        rows: Rows read.
        kept: Rows that gave at least one example.
        examples: Examples made from them; more than `kept` if long rows were split.
        truncated: Rows whose end was cut off.
        split: Rows that were split.
        dropped: Rows left out, by reason.
        tokens: Tokens of all examples.
        trained_tokens: Those with a weight other than 0.
        longest: Tokens of the longest example.
        shortest_too_long: Tokens of the shortest row that was dropped for its length; None if none was.
        weighted: Whether any weight is neither 0 nor 1.
        shortened: Rows of which the chat template left something out, such as earlier thinking.
        packed_rows: Rows of the packed dataset; None if it is not packed.
    """

    rows: int = 0
    kept: int = 0
    examples: int = 0
    truncated: int = 0
    split: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    shortest_too_long: int | None = None
    weighted: bool = False
    shortened: int = 0
    packed_rows: int | None = None

    def drop(self, origin: RowOrigin, error: RowError) -> None:
        """Count a row that is left out."""
        example = f"{origin} ({error.detail})" if error.detail else str(origin)
        self._add_dropped(error.reason, Dropped(1, [example]))

    def add(self, other: "SplitReport") -> None:
        """Add the counts of more rows of the same split."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, dropped in other.dropped.items():
            self._add_dropped(reason, dropped)
        self.longest = max(self.longest, other.longest)
        lengths = [each for each in (self.shortest_too_long, other.shortest_too_long) if each is not None]
        self.shortest_too_long = min(lengths, default=None)
        self.weighted |= other.weighted

    def _add_dropped(self, reason: str, more: Dropped) -> None:
        dropped = self.dropped.setdefault(reason, Dropped())
        dropped.count += more.count
        dropped.examples = (dropped.examples + more.examples)[:EXAMPLES]

    def lines(self, name: str) -> list[str]:
        """The counts as lines to print; `name` is the name of the split."""
        trained = 100 * self.trained_tokens / max(self.tokens, 1)
        made = "" if self.examples == self.kept else f" as {_plural(self.examples, 'example')}"
        lines = [
            f"{name}: {self.kept:,} of {_plural(self.rows, 'row')}{made}, {self.tokens:,} tokens, "
            f"{self.trained_tokens:,} trained ({trained:.0f} %), longest {self.longest:,}"
        ]
        if self.packed_rows is not None:
            lines.append(f"  packed into {_plural(self.packed_rows, 'row')}")
        if self.truncated:
            lines.append(f"  {_plural(self.truncated, 'row')} truncated")
        if self.split:
            lines.append(f"  {_plural(self.split, 'row')} split")
        for reason, dropped in sorted(self.dropped.items(), key=lambda item: -item[1].count):
            more = ", ..." if dropped.count > len(dropped.examples) else ""
            lines.append(f"  {_plural(dropped.count, 'row')} left out: {reason}: {'; '.join(dropped.examples)}{more}")
        if self.shortened:
            lines.append(f"  the chat template left out parts of {_plural(self.shortened, 'row')}")
        return lines


@dataclass
class DataReport:
    """The counts of a run's data.

    Attributes:
        train: The counts of the training examples.
        eval: The counts of the evaluation examples, if there are any.
        store: The folder of the encoded rows.
        notes: Other messages to the user.
    """

    train: SplitReport
    eval: SplitReport | None
    store: Path = field(compare=False)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The counts as lines to print."""
        evaluation = self.eval.lines("eval") if self.eval else []
        return [*self.train.lines("train"), *evaluation, f"encoded rows: {self.store}", *self.notes]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
