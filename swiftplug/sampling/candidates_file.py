"""Existing candidates, from our own `candidates.jsonl` or written by another tool, brought into the ledger."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.messages import parse_messages
from swiftplug.errors import UserError
from swiftplug.sampling.ledger import NO_CANDIDATES, NO_INDEX, Ledger
from swiftplug.sampling.rows import Candidate, Row, check_encodable, is_reference, prompt_key

_KNOWN = {"id", "index", "messages", "reference", "finish_reason", "scores", "reasons", "tools"}
_MOST = 2**31  # a larger index is ignored: the candidate gets the row's next free one


@dataclass
class CandidatesFile:
    """A JSONL file with one candidate per line, and what became of them.

    Attributes:
        path: The file.
        taken: The number of candidates that are in the ledger.
        unmatched: The number of candidates that belong to no row of the dataset.
        first_unmatched: Where the first of those is, as `file:line`; empty if there is none.
        torn: Where the file breaks off within a line, as `file:line`; empty if it does not.
    """

    path: Path
    taken: int = 0
    unmatched: int = 0
    first_unmatched: str = ""
    torn: str = ""

    def read_into(self, ledger: Ledger, has_dataset: bool) -> None:
        """Bring every candidate into the ledger.

        A line requires only `messages`. Its row is found by `id` and prompt, else by the prompt; without a dataset
        each prompt is a row, and so is each `id` of lines that also have an `index`, as this program writes them. The
        reference is the line's `reference`, else the row's.

        Raises:
            UserError: There is no such file, or a line is not a candidate. A last line that breaks off is left out.
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
            ledger.add_candidates(position, row.candidates)
            self.taken += 1
        if not self.taken:
            found = f"{self.unmatched} candidates, none of a row of the dataset" if self.unmatched else "it is empty"
            raise UserError(f"--candidates-file {self.path}: no candidate to score: {found}")
        ledger.set_problem(f"no candidate in {self.path}", NO_CANDIDATES)

    def _lines(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                where = f"{self.path}:{number}"
                if not raw.strip():
                    continue
                try:
                    value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    if not raw.endswith(b"\n"):  # whatever wrote it was stopped in the middle of this line
                        self.torn = where
                        return
                    raise UserError(f"{where}: not JSON: {error}; expected one candidate per line") from None
                yield _parse_line(value, where)


def _position(row: Row, ledger: Ledger, has_dataset: bool) -> int | None:
    """The position of the row that a line's candidate answers; None where no row known so far fits."""
    prompt = prompt_key(row.prompt)
    if row.id:
        position = ledger.position_of(prompt, row.id)
        if position is not None:
            return position
        if row.candidates[0].index != NO_INDEX and not has_dataset and not ledger.has_row(row.id):
            return None
    return ledger.position_of(prompt)


def _parse_line(value: Any, where: str) -> Row:
    """A row with the line's candidate alone; without an id or an index where the line has none."""
    if not isinstance(value, dict) or "messages" not in value:
        raise UserError(f"{where}: has no 'messages'; expected the prompt and, as its last message, the candidate")
    try:
        messages = parse_messages(value["messages"], "messages")
        check_encodable(value)
    except RowError as error:
        raise UserError(f"{where}: {error}") from None
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: expected a prompt and, as the last message, an answer of the assistant: the candidate"
        )
    *prompt, answer = messages
    if "tool_calls" in answer:
        raise UserError(f"{where}: the candidate has tool_calls; expected the calls in its text, in the tools format")
    index, reference = value.get("index"), value.get("reference")
    candidate = Candidate(
        index=index if isinstance(index, int) and 0 <= index < _MOST else NO_INDEX,
        text=_text_of(answer),
        finish_reason=str(value.get("finish_reason") or "unknown"),
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


def _text_of(message: dict[str, Any]) -> str:
    """A candidate's text; reasoning in a field of its own goes before it, as engines write it."""
    reasoning, content = message.get("reasoning_content"), str(message["content"])
    return f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content
