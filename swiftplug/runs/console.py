"""How a run writes to the terminal: lines, the plan of a dry run, and what it is doing at the moment."""

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from swiftplug.formatting import format_count, format_duration, format_rate
from swiftplug.plugin.registry import LoadedPlugin

_FIRST_LINE, _NEXT_LINE = 1.0, 30.0  # seconds until an activity is written down where there is no live line
_TICK = 0.25  # seconds between two looks at the activities
_LEAST_BAR, _WIDEST_BAR, _GAP = 6, 24, 2  # characters

# Held while the thread of a `RunProgress` writes: no process is forked with the console half-way through a line.
_writing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_writing.acquire, after_in_parent=_writing.release, after_in_child=_writing.release)


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print a line unchanged: not wrapped, and without markup."""
    console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)


def print_plan(console: Console, facts: Iterable[tuple[str, str]], nothing_done: str) -> None:
    """Print what a dry run found, one labelled fact per row, and what was not done."""
    print_facts(console, facts)
    print_line(console, f"dry run: {nothing_done}", "bold")


def print_facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    """Print labelled facts, one per row."""
    facts = list(facts)
    width = max(len(label) for label, _ in facts)
    for label, value in facts:
        console.print(Text.assemble((f"{label:{width}}", "bold"), f"  {value}"), highlight=False, soft_wrap=True)


def plugin_fact(plugin: LoadedPlugin, **more: object) -> tuple[str, str]:
    """A plugin as a labelled fact: its kind, and its name, distribution and options."""
    found = plugin.found
    options = ", ".join(f"{name}={value!r}" for name, value in {**plugin.options, **more}.items())
    distribution = f"{found.distribution} {found.version}".rstrip()
    return found.kind.replace("_", " "), f"{found.name}  ({distribution})  {options}".rstrip()


def on_disk(names: Iterable[str]) -> bool:
    """Whether models and datasets are files or folders, so that no library shows the bar of a download."""
    return all(Path(name.partition("#")[0]).expanduser().exists() for name in names)


class Activity:
    """Something that takes a while, of which things may be counted. As a context manager it ends by itself.

    Args:
        progress: Where it is shown.
        doing: What is done, such as "sampling".
        noun: What is counted, in the singular; empty if nothing is.
        total: Their number at the end; None if it is not known.
        done: Their number at the start, which does not count for the rate.
        live: Whether it may have a live line; not if libraries may draw a bar of their own meanwhile, of a download.
    """

    def __init__(
        self, progress: "RunProgress", doing: str, noun: str, total: int | None, done: int, live: bool
    ) -> None:
        self.doing, self.noun, self.total, self.done, self.live = doing, noun, total, done, live
        self._progress = progress
        self._done_before = done
        self._more: Counter[str] = Counter()
        self.started = time.monotonic()
        self._next_line = self.started + _FIRST_LINE
        self._has_line = False

    def advance(self, done: int = 1, **more: float) -> None:
        """Count things as done, and others for their rate alone: `advance(1, candidate=8)`."""
        self.done += done
        self._more.update(more)

    def __enter__(self) -> "Activity":
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.end(self)

    def pace(self) -> list[str]:
        """The time left, where that is known, and the rates."""
        seconds, done = time.monotonic() - self.started, self.done - self._done_before
        if not done:
            return []
        left = [] if self.total is None else [f"{format_duration(seconds / done * (self.total - self.done))} left"]
        rates = [(done, self.noun), *((count, noun) for noun, count in self._more.items())]
        return [*left, *(format_rate(count, seconds, noun) for count, noun in rates)]

    def figures(self) -> list[str]:
        """What is counted, both times, and the rates, as far as there are any."""
        elapsed = f"{format_duration(time.monotonic() - self.started)} elapsed"
        if not self.noun:
            return [elapsed]
        of_total = "" if self.total is None else f"{self.done:,}/"
        count = format_count(self.done if self.total is None else self.total, self.noun)
        return [f"{of_total}{count}", elapsed, *self.pace()]

    def postpone_line(self) -> None:
        """Write no line for the next 30 seconds: another has told enough."""
        self._next_line, self._has_line = time.monotonic() + _NEXT_LINE, True

    def due_line(self) -> str:
        """The line that is to be written now where there is no live line; empty if none is."""
        if self.live or time.monotonic() < self._next_line:
            return ""
        line = f"{self.doing}: {', '.join(self.figures())}" if self._has_line else self.doing
        self.postpone_line()
        return line


class RunProgress:
    """Shows what a run is doing: on a terminal one live line for each activity, below all else that is printed.

    Elsewhere, or for an activity that is not live, a line once it has taken a second, and one every 30 seconds after.

    Args:
        console: Where to write.

    Attributes:
        seconds: How long activities took that have ended, by what was done.

    Example:
        >>> with RunProgress(console) as progress, progress.start("sampling", "row", total=100) as activity:
        ...     for row in rows:
        ...         activity.advance(1, candidate=8)
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._has_live_lines = console.is_terminal and not console.is_dumb_terminal
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._activities: list[Activity] = []
        self._live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self._render)

    def __enter__(self) -> "RunProgress":
        self._stopped = threading.Event()
        if not self.console.quiet:
            threading.Thread(target=self._tick, name="swiftplug-progress", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """End all activities, those of a run that broke off too."""
        self._stopped.set()
        for activity in [*self._activities]:
            self.end(activity)

    def start(
        self, doing: str, noun: str = "", total: int | None = None, *, done: int = 0, live: bool = True
    ) -> Activity:
        """Begin an activity; see `Activity` for the arguments."""
        activity = Activity(self, doing, noun, total, done, live and self._has_live_lines)
        with _writing:
            self._activities.append(activity)
        return activity

    def end(self, activity: Activity) -> None:
        """Take an activity away."""
        with _writing:
            if activity in self._activities:
                self._activities.remove(activity)
                self.seconds[activity.doing] += time.monotonic() - activity.started
                self._refresh()

    def print_line(self, line: str, style: str = "") -> None:
        """Print a line that says enough about the activities for the next 30 seconds."""
        with _writing:
            for activity in self._activities:
                activity.postpone_line()
        print_line(self.console, line, style)

    def _tick(self) -> None:
        while not self._stopped.wait(_TICK):
            with _writing:
                self._refresh()
                for line in filter(None, (activity.due_line() for activity in self._activities)):
                    print_line(self.console, line)

    def _refresh(self) -> None:
        if any(activity.live for activity in self._activities):
            if not self._live.is_started:
                self._live.start()
                self.console.show_cursor(True)  # a run that is killed cannot bring it back
            self._live.refresh()
        else:
            self._live.stop()

    def _render(self) -> RenderableType:
        live = [activity for activity in self._activities if activity.live]
        names = [Text(activity.doing, no_wrap=True, overflow="ellipsis") for activity in live]
        name_width = min(max((name.cell_len for name in names), default=0), self.console.width // 2)
        room = self.console.width - name_width - _LEAST_BAR - 2 * _GAP
        texts = [_fitting(activity.figures(), room) for activity in live]
        bar_width = min(_LEAST_BAR + room - max(map(len, texts), default=0), _WIDEST_BAR)
        table = Table.grid(
            Column(width=name_width), Column(width=bar_width), Column(no_wrap=True), padding=(0, _GAP, 0, 0)
        )
        for activity, name, text in zip(live, names, texts, strict=True):
            table.add_row(name, ProgressBar(activity.total, activity.done), text)
        return table


def _fitting(figures: list[str], room: int) -> str:
    """As many of the figures as there is room for."""
    lengths = accumulate(len(figure) + _GAP for figure in figures)
    return (" " * _GAP).join(figure for figure, end in zip(figures, lengths, strict=True) if end <= room + _GAP)
