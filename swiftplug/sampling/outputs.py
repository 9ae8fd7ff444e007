"""What a sampling run leaves: the candidates, the samples and the page, each written whole or not at all."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from swiftplug.sampling.ledger import Ledger, StoredRow
from swiftplug.sampling.page.page import SamplesPage
from swiftplug.sampling.plugins import Scorer
from swiftplug.sampling.records import Candidate, Row, ScorerInfo
from swiftplug.sampling.rows import to_json
from swiftplug.sampling.selection import Selection, rejected_of, reward_of
from swiftplug.sampling.statistics import Statistics, Summary

CANDIDATES = "candidates.jsonl"
SAMPLES = "samples.jsonl"
PAGE = "report.html"


def write_outputs(
    folder: Path,
    ledger: Ledger,
    positions: range,
    selection: Selection,
    num_return_sequences: int,
    title: str,
    facts: Sequence[tuple[str, str]],
) -> Summary:
    """Choose among the candidates of every row, and write all files of results; one row is in memory at a time.

    Args:
        folder: The run's folder.
        ledger: Holds the rows and their candidates, scored.
        positions: The rows of the run.
        selection: How candidates are chosen.
        num_return_sequences: Candidates a row.
        title: Of the page.
        facts: What the page says of the run, as labels and values.

    Returns:
        The statistics of the run.
    """
    statistics = Statistics(num_return_sequences)
    page = SamplesPage(folder / PAGE, title=title, facts=facts, scorers=_infos(selection.scorers))
    with ExitStack() as stack:
        candidates = stack.enter_context(_written_whole(folder / CANDIDATES))
        samples = stack.enter_context(_written_whole(folder / SAMPLES))
        stack.enter_context(page)
        for stored in ledger.rows(positions):
            row = selection.select(stored, ledger.candidates(stored.position))
            statistics.add(row)
            page.add(row)
            _write_lines(candidates, _candidate_lines(row, stored))
            _write_lines(samples, _sample_lines(row, stored))
        page.finish(statistics.summary())
    return statistics.summary()


def _infos(scorers: Sequence[Scorer]) -> list[ScorerInfo]:
    return [ScorerInfo(it.name, it.kind, it.weight) for it in scorers]


def _candidate_lines(row: Row, stored: StoredRow) -> Iterator[dict[str, Any]]:
    for candidate in row.candidates:
        names = [*candidate.scores]
        yield {
            "id": row.id,
            "index": candidate.index,
            "messages": _messages(row, candidate),
            **({"tools": stored.tools} if stored.tools else {}),
            "reference": stored.reference,
            "finish_reason": candidate.finish_reason,
            "scores": {name: reward_of(candidate, name) for name in names},
            "reasons": candidate.reasons,
        }


def _sample_lines(row: Row, stored: StoredRow) -> Iterator[dict[str, Any]]:
    """The kept candidates of a row, the best first."""
    kept = [candidate for candidate in row.candidates if not candidate.reasons]
    for candidate in sorted(kept, key=lambda it: (-(it.score or 0.0), it.index)):
        rejected = rejected_of(row, candidate)
        yield {
            "id": row.id,
            "messages": _messages(row, candidate),
            **({"tools": stored.tools} if stored.tools else {}),
            **({"rejected_response": rejected.text} if rejected else {}),
            "scores": candidate.scores,
        }


def _messages(row: Row, candidate: Candidate) -> list[dict[str, Any]]:
    return [*row.prompt, {"role": "assistant", "content": candidate.text}]


def _write_lines(file: TextIO, lines: Iterable[dict[str, Any]]) -> None:
    file.writelines(f"{to_json(line)}\n" for line in lines)


@contextmanager
def _written_whole(path: Path) -> Iterator[TextIO]:
    """A file that takes its name when all of it is there."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
