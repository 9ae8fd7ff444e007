"""Existing candidates, from our own `candidates.jsonl` or written by another tool, brought into the ledger."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.messages import parse_messages
from swiftplug.errors import UserError
from swiftplug.sampling.ledger import NO_CANDIDATES, Ledger
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
        first_unmatched: Where the first of those stands, as `file:line`; empty if there is none.
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
        for line in self._lines():
            position = _position(line, ledger, has_dataset)
            if position is None and has_dataset:
                self.unmatched += 1
                self.first_unmatched = self.first_unmatched or line.row.origin
                continue
            if position is None:
                position = ledger.add_row(line.row)
            elif line.row.reference is not None:
                ledger.set_reference(position, line.row.reference)
            index = ledger.free_index(position, line.wanted_index)
            ledger.add_candidates(position, [Candidate(index, line.text, line.finish_reason)])
            self.taken += 1
        if not self.taken:
            found = f"{self.unmatched} candidates, none of a row of the dataset" if self.unmatched else "it is empty"
            raise UserError(f"--candidates-file {self.path}: no candidate to score: {found}")
        ledger.set_problem(f"no candidate in {self.path}", NO_CANDIDATES)

    def _lines(self) -> Iterator["_Line"]:
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


class _Line(NamedTuple):
    row: Row  # the row to make where the ledger has none; its id is the line's, else made of the prompt
    has_id: bool
    wanted_index: int | None
    text: str
    finish_reason: str


def _position(line: _Line, ledger: Ledger, has_dataset: bool) -> int | None:
    """The position of the row that a candidate answers; None where no row known so far fits."""
    prompt = prompt_key(line.row.prompt)
    if line.has_id:
        position = ledger.position_of(prompt, line.row.id)
        if position is not None:
            return position
        if line.wanted_index is not None and not has_dataset and not ledger.has_row(line.row.id):
            return None
    return ledger.position_of(prompt)


def _parse_line(value: Any, where: str) -> _Line:
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
    row_id, index, reference = value.get("id"), value.get("index"), value.get("reference")
    row = Row(
        id=str(row_id) if row_id is not None else prompt_key(prompt),
        origin=where,
        prompt=prompt,
        tools=value.get("tools"),
        columns={key: item for key, item in value.items() if key not in _KNOWN},
        reference=reference if is_reference(reference) else None,
    )
    return _Line(
        row=row,
        has_id=row_id is not None,
        wanted_index=index if isinstance(index, int) and 0 <= index < _MOST else None,
        text=_text_of(answer),
        finish_reason=str(value.get("finish_reason") or "unknown"),
    )


def _text_of(message: dict[str, Any]) -> str:
    """A candidate's text; reasoning in a field of its own goes before it, as engines write it."""
    reasoning, content = message.get("reasoning_content"), str(message["content"])
    return f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content
