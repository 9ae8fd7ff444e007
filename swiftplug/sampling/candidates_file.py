"""Candidates that exist: this program's `candidates.jsonl`, or what another tool wrote, brought into the ledger."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.messages import parse_messages
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Completion
from swiftplug.sampling.ledger import NO_CANDIDATES, Ledger
from swiftplug.sampling.rows import Question, check_text, is_reference, prompt_key

_OWN = {"id", "index", "messages", "reference", "finish_reason", "scores", "reasons", "tools"}
_UNKNOWN = "unknown"
_MOST = 2**31  # an index beyond is none: the row's next free one is taken


class Read(NamedTuple):
    """What became of a file of candidates.

    Attributes:
        candidates: How many candidates were taken.
        strangers: How many are of no row of the dataset.
        first_stranger: Where the first of those stands, as `file:line`; empty if there is none.
        torn: Where the file breaks off within a line, as `file:line`; empty if it does not.
    """

    candidates: int
    strangers: int
    first_stranger: str
    torn: str


class _Line(NamedTuple):
    where: str
    id: str | None
    number: int | None
    question: Question
    completion: Completion


def read_candidates(path: Path, ledger: Ledger, has_dataset: bool) -> Read:
    """Bring every candidate of a file into the ledger.

    Only `messages` is required of a line. The row is found by `id` and prompt, else by the prompt; without a dataset
    each prompt is a row, and so is each `id` of lines that have an `index` too, as this program writes them. The
    reference is the line's `reference`, else the row's.

    Args:
        path: JSONL, one object a candidate; its last message is the candidate.
        ledger: Holds the rows of the dataset, if there is one.
        has_dataset: Whether there is one; then a candidate of no row of it is counted and left out.

    Raises:
        UserError: There is no such file, or a line is not a candidate. A last line that breaks off is left out.
    """
    if not path.is_file():
        raise UserError(f"--candidates-file {path}: there is no such file")
    taken, strangers, first_stranger = 0, 0, ""
    reader = _Reader(path)
    for line in reader:
        position = _position(line, ledger, has_dataset)
        if position is None and has_dataset:
            strangers += 1
            first_stranger = first_stranger or line.where
            continue
        if position is None:
            position = ledger.add_row(line.question)
        elif line.question.reference is not None:
            ledger.set_reference(position, line.question.reference)
        ledger.add_candidate(position, line.number, line.completion)
        taken += 1
    if not taken:
        found = f"{strangers} candidates, none of a row of the dataset" if strangers else "it is empty"
        raise UserError(f"--candidates-file {path}: no candidate to score: {found}")
    ledger.mark(f"no candidate in {path}", NO_CANDIDATES)
    return Read(taken, strangers, first_stranger, reader.torn)


def _position(line: _Line, ledger: Ledger, has_dataset: bool) -> int | None:
    """The position of the row that a candidate answers; None where it is none of those known so far."""
    prompt = prompt_key(line.question.prompt)
    if line.id is not None:
        position = ledger.position_of(prompt, line.id)
        if position is not None:
            return position
        if line.number is not None and not has_dataset and not ledger.has_row(line.id):
            return None
    return ledger.position_of(prompt)


class _Reader:
    """The candidates of a file.

    Attributes:
        torn: Where the file breaks off within its last line; known when all was read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.torn = ""

    def __iter__(self) -> Iterator[_Line]:
        with self._path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                where = f"{self._path}:{number}"
                if not raw.strip():
                    continue
                try:
                    value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    if not raw.endswith(b"\n"):  # whoever wrote it was stopped in the middle of this line
                        self.torn = where
                        return
                    raise UserError(f"{where}: not JSON: {error}; expected one candidate a line") from None
                yield _parsed(value, where)


def _parsed(value: Any, where: str) -> _Line:
    if not isinstance(value, dict) or "messages" not in value:
        raise UserError(f"{where}: has no 'messages'; expected the prompt and, as its last message, the candidate")
    try:
        messages = parse_messages(value["messages"], "messages")
        check_text(value)
    except RowError as error:
        raise UserError(f"{where}: {error.reason} ({error.detail})") from None
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last message is no assistant's behind a prompt, so there is no candidate in it")
    if "tool_calls" in messages[-1]:
        raise UserError(
            f"{where}: the candidate has tool_calls; expected its calls in the text, as its tools format has them"
        )
    row_id, number, reference = value.get("id"), value.get("index"), value.get("reference")
    prompt = messages[:-1]
    question = Question(
        id=str(row_id) if row_id is not None else prompt_key(prompt),
        origin=where,
        prompt=prompt,
        tools=value.get("tools"),
        columns={key: item for key, item in value.items() if key not in _OWN},
        reference=reference if is_reference(reference) else None,
    )
    return _Line(
        where,
        str(row_id) if row_id is not None else None,
        number if isinstance(number, int) and 0 <= number < _MOST else None,
        question,
        Completion(_text_of(messages[-1]), str(value.get("finish_reason") or _UNKNOWN)),
    )


def _text_of(message: dict[str, Any]) -> str:
    """A candidate's text; reasoning that is told apart stands before it, as engines write it."""
    reasoning = message.get("reasoning_content")
    content = str(message["content"])
    return f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content
