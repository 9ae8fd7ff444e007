"""Reads existing candidates, from a `candidates.jsonl` of an earlier run or of another tool, into the ledger."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.files import IncompleteLineError, read_json, reader_of
from swiftplug.data.read.messages import check_media, parse_messages
from swiftplug.data.read.report import UnreadKeys
from swiftplug.errors import UserError
from swiftplug.formatting import format_count
from swiftplug.sampling.ledger import NO_CANDIDATES, NO_INDEX, Ledger
from swiftplug.sampling.rows import Candidate, Row, answer_text, check_encodable, is_reference, prompt_key

_KNOWN = {"id", "index", "messages", "reference", "finish_reason", "stop_reason", "scores", "reasons", "tools"}
_MAX_INDEX = 2**31  # a candidate with a larger index gets the row's next free index


@dataclass
class CandidatesFile:
    """A file of rows that are candidates, usually JSONL, and counts of what was read."""

    path: Path
    taken: int = 0
    """Candidates that are in the ledger."""
    unmatched: int = 0
    """Candidates that belong to no row of the dataset."""
    first_unmatched: str = ""
    """Where the first of those is, as `file:line`."""
    torn: str = ""
    """The last line, as `file:line`, if it is incomplete."""
    unread: UnreadKeys = field(default_factory=UnreadKeys)
    """Columns of candidates whose rows are in the dataset."""

    def read_into(self, ledger: Ledger, has_dataset: bool) -> None:
        """Write every candidate into the ledger; an incomplete last line is left out.

        A line requires only `messages`. Its row is found by `id` and prompt, else by the prompt. Without a dataset,
        each prompt is a row, and so is each `id` of lines that also have an `index`, as swiftplug writes them. The
        reference is the line's `reference`, else the row's.
        """
        if not self.path.is_file():
            raise UserError(f"--candidates-file {self.path}: there is no such file")
        for row in self._lines():
            (candidate,) = row.candidates
            position = _position(row, ledger, has_dataset)
            if position is None and has_dataset:
                self.unmatched += 1
                self.first_unmatched = self.first_unmatched or row.origin
                continue
            if position is None:
                position = ledger.add_row(row)
            elif row.reference is not None:
                ledger.set_reference(position, row.reference)
            candidate.index = ledger.free_index(position, candidate.index)
            if has_dataset:  # the row's own columns are used
                self.unread.count_row(row.columns)
            ledger.add_candidates(position, row.candidates)
            self.taken += 1
        if not self.taken:
            found = (
                f"{format_count(self.unmatched, 'candidate')}, of which none belongs to a row of the dataset"
                if self.unmatched
                else "it is empty"
            )
            raise UserError(f"--candidates-file {self.path}: no candidate to score: {found}")
        ledger.set_problem(f"no candidate in {self.path}", NO_CANDIDATES)

    def _lines(self) -> Iterator[Row]:
        reader = reader_of(self.path) or read_json
        try:
            for value, origin in reader(self.path):
                if not (isinstance(value, dict) and value.get("failure")):  # a prompt of a training, without candidates
                    yield _parse_line(value, str(origin))
        except IncompleteLineError as error:  # its writer was stopped in the middle of this line
            self.torn = error.place


def _position(row: Row, ledger: Ledger, has_dataset: bool) -> int | None:
    """The position of the row to which a line's candidate belongs; None if the ledger does not have it."""
    prompt = prompt_key(row.prompt)
    if row.id:
        position = ledger.position_of(prompt, row.id)
        if position is not None:
            return position
        if row.candidates[0].index != NO_INDEX and not has_dataset and not ledger.has_row(row.id):
            return None
    return ledger.position_of(prompt)


def _parse_line(value: Any, where: str) -> Row:
    """A row with the line's candidate; the row's id is empty and the index is NO_INDEX if the line has none."""
    if not isinstance(value, dict) or "messages" not in value:
        raise UserError(f"{where}: has no 'messages'; expected the prompt and, as its last message, the candidate")
    try:
        check_media(value, "the candidate")
        messages = parse_messages(value["messages"], "messages")
        check_encodable(value)
    except RowError as error:
        raise UserError(f"{where}: {error}") from None
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: expected a prompt and, as its last message, the candidate, with role 'assistant'")
    *prompt, answer = messages
    if "tool_calls" in answer:
        raise UserError(f"{where}: the candidate has tool_calls; expected the calls in its text, in the tools format")
    index, reference = value.get("index"), value.get("reference")
    candidate = Candidate(
        index=index if isinstance(index, int) and 0 <= index < _MAX_INDEX else NO_INDEX,
        text=answer_text(answer),
        finish_reason=str(value.get("finish_reason") or value.get("stop_reason") or "unknown"),
    )
    return Row(
        id=str(value["id"]) if value.get("id") is not None else "",
        origin=where,
        prompt=prompt,
        tools=value.get("tools"),
        columns={key: item for key, item in value.items() if key not in _KNOWN},
        reference=reference if is_reference(reference) else None,
        candidates=[candidate],
    )
