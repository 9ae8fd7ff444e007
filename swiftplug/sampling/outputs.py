"""Writes the results of a sampling run: candidates, samples and page, each file completely or not at all."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swiftplug.config.schema import SampleConfig
from swiftplug.runs.folder import atomic_path
from swiftplug.sampling.ledger import Ledger
from swiftplug.sampling.page.page import SamplesPage
from swiftplug.sampling.rows import TEMPLATE_KWARGS, Candidate, Row, to_json
from swiftplug.sampling.scoring import Scorer
from swiftplug.sampling.selection import Selection, rank, rejected_of
from swiftplug.sampling.statistics import Statistics, Summary

CANDIDATES = "candidates.jsonl"
SAMPLES = "samples.jsonl"
PAGE = "report.html"


def write_outputs(
    folder: Path,
    ledger: Ledger,
    config: SampleConfig,
    scorers: Sequence[Scorer],
    title: str,
    facts: Sequence[tuple[str, str]],
) -> Summary:
    """Select among the scored candidates of every row and write all result files, with one row in memory at a time."""
    selection = Selection(config, scorers)
    statistics = Statistics(config.num_return_sequences)
    with (
        atomic_path(folder / CANDIDATES) as candidates_path,
        candidates_path.open("w", encoding="utf-8", newline="\n") as candidates,
        atomic_path(folder / SAMPLES) as samples_path,
        samples_path.open("w", encoding="utf-8", newline="\n") as samples,
        SamplesPage(folder / PAGE, title=title, facts=facts, scorers=scorers) as page,
    ):
        for row in ledger.rows(config.shard_rows(ledger.count_rows())):
            selection.select(row)
            statistics.add(row)
            page.add(row)
            candidates.writelines(f"{to_json(candidate_line(row, each))}\n" for each in row.candidates)
            samples.writelines(f"{to_json(line)}\n" for line in _sample_lines(row))
        summary = statistics.summary()
        page.finish(summary)
    return summary


def candidate_line(row: Row, candidate: Candidate) -> dict[str, Any]:
    """A candidate as a line of `candidates.jsonl`."""
    return {
        "id": row.id,
        "index": candidate.index,
        **_conversation(row, candidate.messages),
        "reference": row.reference,
        "finish_reason": candidate.finish_reason,
        "scores": candidate.rewards or {},
        "reasons": candidate.reasons,
    }


def row_line(row: Row) -> dict[str, Any]:
    """A row without candidates as a line of that file."""
    return {"id": row.id, **_conversation(row, ()), "reference": row.reference}


def _sample_lines(row: Row) -> Iterator[dict[str, Any]]:
    """The kept candidates of a row, the best first."""
    kept = [candidate for candidate in row.candidates if not candidate.reasons]
    for candidate in sorted(kept, key=rank):
        rejected = rejected_of(row, candidate)
        yield {
            "id": row.id,
            **_conversation(row, candidate.messages),
            **({"rejected_response": rejected.text} if rejected else {}),
            "scores": candidate.scores,
        }


def _conversation(row: Row, answer: Sequence[dict[str, Any]]) -> dict[str, Any]:
    messages = [*row.prompt, *answer]
    rendered_with = {"tools": row.tools, TEMPLATE_KWARGS: row.columns.get(TEMPLATE_KWARGS)}
    return {"messages": messages, **{key: value for key, value in rendered_with.items() if value}}
