"""The page of a sampling run: its figures, and its questions with their candidates side by side.

The page is one file that loads nothing from any network. What a model or a dataset wrote reaches it as escaped JSON,
which its script puts into text nodes only; its content security policy lets no other script run.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from swiftplug.runs.folder import atomic_path
from swiftplug.sampling.page.figures import charts_of, figures_of, tallies_of
from swiftplug.sampling.rows import Candidate, Row
from swiftplug.sampling.scoring import Scorer
from swiftplug.sampling.statistics import Summary

_HEAD, _TAIL = 14_000, 6_000
"""How many characters of a text longer than both together are shown; the tail, where its final answer is."""

_MOST_CHARACTERS = 30_000_000
"""How many characters of rows a page holds at most, so that a browser opens it."""

_MOST_COLUMNS = 6
"""How many charts are side by side at most."""

# Characters that could end a script element or a line of a script.
_UNSAFE = re.compile("[<>&\u2028\u2029]")


class SamplesPage:
    """Writes `report.html` as the rows of a run pass; it holds none of them in memory.

    Args:
        path: Where the page goes, in a folder that exists.
        title: Its heading.
        facts: What to show about the run (model, engine, temperature, seed, ...), as label and value.
        scorers: The scorers of the run, in the order to show them.
        max_rows: Only so many of the first rows are shown; the figures count all.

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
        # A lone surrogate, which no encoding writes, becomes the escape that JSON has for it.
        self._spool = TemporaryFile(  # noqa: SIM115
            "w+", encoding="utf-8", errors="backslashreplace", newline="", dir=path.parent
        )

    def __enter__(self) -> "SamplesPage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._spool.close()

    def add(self, row: Row) -> None:
        """Show a row after selection, or only count it where the page is full."""
        self._rows += 1
        if self._shown == self._max_rows or self._shown < self._rows - 1:  # once full, it stays full
            return
        line = _escaped(_row(row))
        if self._characters + len(line) > _MOST_CHARACTERS:
            return
        self._spool.write(line if self._shown == 0 else ",\n" + line)
        self._shown += 1
        self._characters += len(line)

    def finish(self, summary: Summary) -> None:
        """Write the page; it appears whole or not at all."""
        self._spool.seek(0)
        script = _source("page.js")
        charts = charts_of(summary, self._scorers)
        template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
            _source("page.html.jinja")
        )
        page = template.stream(
            title=self._title,
            facts=self._facts,
            shown=self._shown,
            total=self._rows,
            figures=figures_of(summary),
            charts=charts,
            columns=_columns(sum(2 if chart.wide else 1 for chart in charts)),
            tallies=tallies_of(summary),
            scorers=Markup(_escaped([scorer.name for scorer in self._scorers])),
            judged=summary.right_share is not None,
            rows=map(Markup, self._spool),
            style=Markup(_source("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
        with (
            atomic_path(self._path) as partial,
            partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            file.writelines(page)


def _columns(charts: int) -> int:
    """How many charts are side by side, so that no line of charts has many fewer than another."""
    rows = math.ceil(charts / _MOST_COLUMNS) or 1
    return math.ceil(charts / rows) or 1


def _source(name: str) -> str:
    return (files("swiftplug.sampling.page") / name).read_text(encoding="utf-8")


def _escaped(value: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _row(row: Row) -> dict[str, Any]:
    return {
        "position": row.position,
        "id": row.id,
        "origin": row.origin,
        "prompt": [{"role": str(message["role"]), "text": _clipped(_content(message))} for message in row.prompt],
        "reference": None if row.reference is None else _clipped(str(row.reference)),
        "problem": row.unanswered,
        "leftOut": row.left_out,
        "candidates": [_candidate(candidate) for candidate in row.candidates],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "index": candidate.index,
        "text": _clipped(candidate.text),
        "finish": candidate.finish_reason,
        "sampled": candidate.sampled,
        "scores": candidate.scores,
        "steps": {name: rewards for name, rewards in (candidate.rewards or {}).items() if isinstance(rewards, list)},
        "score": candidate.score,
        "right": candidate.right,
        "answer": None if candidate.answer is None else _clipped(candidate.answer),
        "reasons": candidate.reasons,
    }


def _content(message: dict[str, Any]) -> str:
    """A message's text, and as JSON what else it has (tool calls, parts that are not text)."""
    content = message.get("content")
    rest = {key: value for key, value in message.items() if key not in ("role", "content") and value is not None}
    if content is not None and not isinstance(content, str):
        rest["content"] = content
    text = content if isinstance(content, str) else ""
    return "\n".join([text] * bool(text or not rest) + [json.dumps(rest, ensure_ascii=False, indent=2)] * bool(rest))


def _clipped(text: str) -> str | list[str | int]:
    """The text; of a very long one its head, how many characters are not shown, and its tail."""
    left_out = len(text) - _HEAD - _TAIL
    return text if left_out <= 0 else [text[:_HEAD], left_out, text[-_TAIL:]]
