"""The page of a sampling run: its figures, and its questions with their candidates side by side."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from markupsafe import Markup

from swiftplug.runs.page.page import clipped, escaped_json, write_page
from swiftplug.sampling.page.figures import charts_of, figures_of, tallies_of
from swiftplug.sampling.rows import Candidate, Row
from swiftplug.sampling.scoring import Scorer
from swiftplug.sampling.statistics import Summary

_MAX_CHARACTERS = 30_000_000
"""Number of characters of rows in a page at most, so that browsers can open it."""

_MAX_COLUMNS = 6
"""Number of charts side by side at most."""


class SamplesPage:
    """Writes `report.html` row by row and holds no rows in memory.

    Args:
        path: The file, in an existing folder.
        title: The heading of the page.
        facts: What to show about the run (model, engine, temperature, seed, ...), as labels and values.
        scorers: The scorers of the run, in the order in which they are shown.
        max_rows: How many rows are shown, the first ones; the figures count all.

    Example:
        >>> with SamplesPage(path, title="gsm8k", facts=[("model", "SmolLM2")], scorers=scorers) as page:
        ...     for row in rows:
        ...         statistics.add(row)
        ...         page.add(row)
        ...     page.finish(statistics.summary())
    """

    def __init__(
        self,
        path: Path,
        *,
        title: str,
        facts: Sequence[tuple[str, str]],
        scorers: Sequence[Scorer],
        max_rows: int = 500,
    ) -> None:
        self._path = path
        self._title = title
        self._facts = facts
        self._scorers = scorers
        self._max_rows = max_rows
        self._rows = self._shown = self._characters = 0

    def __enter__(self) -> "SamplesPage":
        with ExitStack() as stack:
            # An unpaired surrogate, which UTF-8 cannot encode, becomes its JSON escape.
            self._spool = stack.enter_context(
                TemporaryFile("w+", encoding="utf-8", errors="backslashreplace", newline="", dir=self._path.parent)
            )
            self._on_exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._on_exit.close()

    def add(self, row: Row) -> None:
        """Add a row after selection; if the page is full, only count it."""
        self._rows += 1
        if self._shown == self._max_rows or self._shown < self._rows - 1:  # once full, it stays full
            return
        line = escaped_json(_row(row))
        if self._characters + len(line) > _MAX_CHARACTERS:
            return
        self._spool.write(line if self._shown == 0 else ",\n" + line)
        self._shown += 1
        self._characters += len(line)

    def finish(self, summary: Summary) -> None:
        """Write the page, completely or not at all."""
        self._spool.seek(0)
        charts = charts_of(summary, self._scorers)
        write_page(
            self._path,
            "sampling/page/page.html.jinja",
            styles=["sampling/page/page.css"],
            scripts=["sampling/page/page.js"],
            kind="samples",
            title=self._title,
            facts=self._facts,
            shown=self._shown,
            total=self._rows,
            main_figures=figures_of(summary),
            charts=charts,
            columns=_columns(sum(2 if chart.wide else 1 for chart in charts)),
            tallies=tallies_of(summary),
            scorers=escaped_json([scorer.name for scorer in self._scorers]),
            rows=map(Markup, self._spool),
        )


def _columns(charts: int) -> int:
    """The number of charts side by side with which the lines of charts are about equally long."""
    rows = math.ceil(charts / _MAX_COLUMNS) or 1
    return math.ceil(charts / rows) or 1


def _row(row: Row) -> dict[str, Any]:
    return {
        "position": row.position,
        "id": row.id,
        "origin": row.origin,
        "prompt": message_texts(row.prompt),
        "reference": None if row.reference is None else clipped(str(row.reference)),
        "problem": row.problem or row.failure,
        "leftOut": row.left_out,
        "candidates": [_candidate(candidate) for candidate in row.candidates],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "index": candidate.index,
        "text": clipped(candidate.text),
        "finish": candidate.finish_reason,
        "sampled": candidate.sampled,
        "scores": candidate.scores,
        "steps": {name: rewards for name, rewards in (candidate.rewards or {}).items() if isinstance(rewards, list)},
        "score": candidate.score,
        "right": candidate.right,
        "answer": None if candidate.answer is None else clipped(candidate.answer),
        "reasons": candidate.reasons,
    }


def message_texts(
    messages: Iterable[dict[str, Any]], shorten: Callable[[str], str | list[str | int]] = clipped
) -> list[dict[str, Any]]:
    """Messages as the page's script shows them."""
    return [{"role": str(message["role"]), "text": shorten(_content(message))} for message in messages]


def _content(message: dict[str, Any]) -> str:
    """A message's text, followed by its other fields (tool calls, content that is not text) as JSON."""
    rest = {key: value for key, value in message.items() if key != "role" and value is not None}
    text = rest.pop("content") if isinstance(rest.get("content"), str) else ""
    if not rest:
        return text
    fields = json.dumps(rest, ensure_ascii=False, indent=2)
    return f"{text}\n{fields}" if text else fields
