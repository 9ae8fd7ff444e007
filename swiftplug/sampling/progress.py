"""What a person sees while a run samples: one live line on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from swiftplug.runs.console import format_duration, print_line

_EVERY = 30.0  # seconds between lines where there is no terminal


class SampleProgress:
    """Rows done, candidates a second, and the time left.

    Args:
        console: Where it is printed.
        rows: How many rows there are to do.
        what: What is done with them.
    """

    def __init__(self, console: Console, rows: int, what: str) -> None:
        self._console = console
        self._rows = rows
        self._what = what
        self._done = self._candidates = 0
        self._started = self._told = time.monotonic()
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rate]}")
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(what, total=rows, rate=f"0/{rows:,} rows")

    def __enter__(self) -> "SampleProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, rows: int, candidates: int) -> None:
        """Count more of them as done."""
        self._done += rows
        self._candidates += candidates
        now = time.monotonic()
        seconds = max(now - self._started, 1e-9)
        left = (self._rows - self._done) * seconds / self._done if self._done else 0.0
        pace = f"{self._candidates / seconds:,.1f} candidates/s, {format_duration(left)} left"
        rate = f"{self._done:,}/{self._rows:,} rows, {pace}"
        self._bar.update(self._task, completed=self._done, rate=rate)
        if not self._console.is_terminal and now - self._told > _EVERY and self._done < self._rows:
            self._told = now
            print_line(self._console, f"{self._what}: {rate}")
