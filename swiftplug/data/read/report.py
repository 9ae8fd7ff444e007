"""What became of the rows of a run: how many were read, used, cut or left out, and why."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from swiftplug.data.read.conversation import RowError, RowOrigin, has_value
from swiftplug.data.read.formats import COLUMNS, REJECTED
from swiftplug.formatting import format_count, format_percent

EXAMPLES = 3
NAMES = 20  # unread keys that are named for each number of rows
TOOLS_HINT = "--tools hermes, or another tools format, writes tools and calls as text"
SUMS = ("rows", "kept", "examples", "truncated", "split", "shortened", "tokens", "trained_tokens", "good", "bad")


@dataclass
class Dropped:
    """Rows that were left out for one reason: their number, and the first few as `file:line (detail)`."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join(self.examples) + (", ..." if self.count > len(self.examples) else "")


@dataclass
class UnreadKeys:
    """Keys of rows and messages that nothing reads: how many rows and how many messages have each.

    Example:
        >>> unread = UnreadKeys()
        >>> unread.count_row({"foo": 1, "bar": None})
        >>> unread.lines()
        ['1 row has `foo`: not read']
    """

    rows: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)

    def count_row(self, rest: Mapping[str, Any]) -> None:
        """Count what a row has besides the columns that are read; a key without a value, or an empty one, is none."""
        self.rows.update(key for key, value in rest.items() if has_value(value))

    def count_message(self, rest: Mapping[str, Any]) -> None:
        """Likewise for a message."""
        self.messages.update(key for key, value in rest.items() if has_value(value))

    def count_rendered(self, rendered_without: Iterable[str], messages: Sequence[Mapping[str, Any]]) -> None:
        """Count the keys of a row and of its messages that the chat template does not read."""
        for key in rendered_without:
            having = sum(key in message for message in messages)
            (self.messages if having else self.rows)[key] += max(having, 1)

    def add(self, other: "UnreadKeys") -> None:
        """Add the counts of more rows."""
        self.rows.update(other.rows)
        self.messages.update(other.messages)

    def lines(self) -> list[str]:
        """One line that names all keys, those that equally many have together; none if there are no keys."""
        groups = [*_by_count(self.rows, "row"), *_by_count(self.messages, "message")]
        if not groups:
            return []
        preferences = " (of preferences, only the preferred answer is used)" if self.rows.keys() & set(REJECTED) else ""
        hint = f" ({TOOLS_HINT})" if "tools" in self.rows or "tool_calls" in self.messages else ""
        return [f"{', '.join(groups)}: not read{preferences}{hint}"]


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
        good: Examples that are rated good, for tasks on rated answers.
        bad: Those rated bad.
        longest: Tokens of the longest example.
        shortest_too_long: Tokens of the shortest row that was dropped for its length; None if none was.
        weighted: Whether any weight is neither 0 nor 1.
        shortened: Rows of which the chat template left something out, such as earlier thinking.
        packed_rows: Rows of the packed dataset; None if it is not packed.
        unread: The keys of rows and messages that nothing reads.
        sha256: The hash of the rows as they were read.
    """

    rows: int = 0
    kept: int = 0
    examples: int = 0
    truncated: int = 0
    split: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    tokens: int = 0
    trained_tokens: int = 0
    good: int = 0
    bad: int = 0
    longest: int = 0
    shortest_too_long: int | None = None
    weighted: bool = False
    shortened: int = 0
    packed_rows: int | None = None
    unread: UnreadKeys = field(default_factory=UnreadKeys)
    sha256: str = ""

    @contextmanager
    def dropping(self, origin: RowOrigin) -> Iterator[None]:
        """Count the row that was read there as left out if a RowError is raised."""
        try:
            yield
        except RowError as error:
            self.drop(error.reason, f"{origin} ({error.detail})" if error.detail else str(origin))

    def drop(self, reason: str, example: str) -> None:
        """Count a row as left out; `example` is where it was read, and what was found there."""
        self._add_dropped(reason, Dropped(1, [example]))

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
        self.unread.add(other.unread)

    def _add_dropped(self, reason: str, more: Dropped) -> None:
        dropped = self.dropped.setdefault(reason, Dropped())
        dropped.count += more.count
        dropped.examples = (dropped.examples + more.examples)[:EXAMPLES]

    def lines(self, name: str) -> list[str]:
        """The counts as lines to print; `name` is the name of the split."""
        share = format_percent(self.trained_tokens / max(self.tokens, 1))
        trained = f"{self.trained_tokens:,} trained ({share}), " if self.trained_tokens else ""
        made = "" if self.examples == self.kept else f" as {format_count(self.examples, 'example')}"
        lines = [
            f"{name}: {self.kept:,} of {format_count(self.rows, 'row')}{made}, {format_count(self.tokens, 'token')}, "
            f"{trained}longest {self.longest:,}"
        ]
        if self.good or self.bad:
            lines.append(f"  {self.good:,} rated good, {self.bad:,} rated bad")
        if self.packed_rows is not None:
            lines.append(f"  packed into {format_count(self.packed_rows, 'row')}")
        if self.truncated:
            lines.append(f"  {format_count(self.truncated, 'row')} truncated")
        if self.split:
            lines.append(f"  {format_count(self.split, 'row')} split")
        for reason, dropped in sorted(self.dropped.items(), key=lambda item: -item[1].count):
            lines.append(f"  {format_count(dropped.count, 'row')} left out: {reason}: {dropped}")
        if self.shortened:
            lines.append(f"  the chat template left out parts of {format_count(self.shortened, 'row')}")
        return lines


@dataclass
class DataReport:
    """The counts of a run's data.

    Attributes:
        train: The counts of the training examples.
        eval: The counts of the evaluation examples, if there are any.
        store: The folder of the encoded rows; None if they are not stored.
        notes: Other messages to the user.
    """

    train: SplitReport
    eval: SplitReport | None
    store: Path | None = field(default=None, compare=False)
    notes: list[str] = field(default_factory=list)

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """By config key, the number and the hash of the rows that were read."""
        splits = {"dataset": self.train, "eval_dataset": self.eval}
        return {key: {"rows": split.rows, "sha256": split.sha256} for key, split in splits.items() if split}

    def unread_lines(self) -> list[str]:
        """The line about the keys that nothing reads, if there are any."""
        unread = UnreadKeys()
        for split in filter(None, (self.train, self.eval)):
            unread.add(split.unread)
        return unread.lines()

    def lines(self) -> list[str]:
        """The counts as lines to print."""
        evaluation = self.eval.lines("eval") if self.eval else []
        lines = [*self.train.lines("train"), *evaluation, *self.unread_lines()]
        stored = [] if self.store is None else [f"encoded rows: {self.store}"]
        return [*lines, *stored, *self.notes]


def _by_count(counts: Mapping[str, int], noun: str) -> Iterable[str]:
    keys = defaultdict(list)
    for key, count in sorted(counts.items()):
        similar = get_close_matches(key, COLUMNS - {key} if noun == "row" else (), n=1, cutoff=0.88)
        keys[count].append(f"`{key}` (did you mean `{similar[0]}`?)" if similar else f"`{key or '(no name)'}`")
    for count, names in sorted(keys.items(), reverse=True):
        if len(names) > NAMES:
            names[NAMES:] = [f"{len(names) - NAMES:,} other keys"]
        yield f"{format_count(count, noun)} {'has' if count == 1 else 'have'} {', '.join(names)}"
