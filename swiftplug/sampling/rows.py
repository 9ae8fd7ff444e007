"""Rows of a dataset as questions: the prompt, the reference, and what scorers may want to see."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from swiftplug.config.sample_schema import SampleConfig
from swiftplug.data.read.conversation import RawRow, RowError
from swiftplug.data.read.rows import to_conversation
from swiftplug.data.read.sources import Source, open_source
from swiftplug.plugin.registry import Registry

REFERENCE_COLUMNS = ("reference", "solution", "answer")
_ASKING = ("user", "tool")


@dataclass(frozen=True)
class Question:
    """A row as a sampling run reads it.

    Attributes:
        id: A hash of its content.
        origin: Where it was read, as `file:line`.
        prompt: The messages up to the question.
        tools: Descriptions of the tools, or None.
        columns: Every other column.
        reference: The right answer: the last assistant message, else a column `reference`, `solution` or `answer`.
        problem: Why it cannot be answered; empty if it can.
    """

    id: str
    origin: str
    prompt: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    reference: Any = None
    problem: str = ""


def open_sources(config: SampleConfig, registry: Registry) -> list[Source]:
    """Find the datasets of a run.

    Raises:
        UserError: One is not there, or cannot be read.
    """
    return [
        open_source(choice, registry, config.where("dataset", index)) for index, choice in enumerate(config.dataset)
    ]


def read_questions(sources: list[Source], columns: Mapping[str, str], system: str | None) -> Iterator[Question]:
    """Read every row of the datasets, one after the other.

    Args:
        sources: The datasets.
        columns: Columns to rename, from the dataset's name to the one known here.
        system: The system message of rows that have none.

    Raises:
        UserError: A file is broken.
    """
    for raw in chain.from_iterable(source.read() for source in sources):
        try:
            yield _question(raw, columns, system)
        except RowError as error:
            detail = f" ({error.detail})" if error.detail else ""
            yield Question(_hash(raw.row), str(raw.origin), problem=f"{error.reason}{detail}")


def _question(raw: RawRow, columns: Mapping[str, str], system: str | None) -> Question:
    read = to_conversation(raw.row, raw.origin, "sample", columns)
    messages, reference = list(read.messages), None
    if messages and messages[-1]["role"] == "assistant":
        reference = messages.pop()["content"].strip() or None
    if not messages or messages[-1]["role"] not in _ASKING:
        raise RowError("no question", "a row without a user's message" if read.text is None else "a row of plain text")
    if not messages[-1]["content"].strip() and messages[-1]["role"] == "user":
        raise RowError("the question is empty")
    if reference is None:
        given = (read.columns.get(name) for name in REFERENCE_COLUMNS)
        reference = next((value for value in given if is_reference(value)), None)
    check_text([read.tools, reference, read.columns])
    row_id = _hash([messages, read.tools, reference, read.columns])
    if system and messages[0]["role"] not in ("system", "developer"):
        messages = [{"role": "system", "content": system}, *messages]
    return Question(row_id, str(raw.origin), messages, read.tools, read.columns, reference)


def is_reference(value: Any) -> bool:
    """Whether there is something to compare answers with: an empty cell of a CSV file, say, is nothing."""
    return value is not None and bool(str(value).strip())


def check_text(value: Any) -> None:
    """Refuse half of a character (a lone surrogate, as JSON may escape it), which no file can hold.

    Raises:
        RowError: There is one.
    """
    try:
        to_json(value).encode()
    except UnicodeEncodeError as error:
        raise RowError("a text holds half a character", f"{error.object[error.start]!a}") from None


def _hash(content: Any) -> str:
    text = to_json(content, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def prompt_key(prompt: list[dict[str, Any]]) -> str:
    """What tells whether two prompts are the same: their roles and contents; a system message does not count."""
    return _hash([[it["role"], it.get("content") or ""] for it in prompt if it["role"] not in ("system", "developer")])


def to_json(value: Any, *, sort_keys: bool = False) -> str:
    """JSON as it is, not ASCII-escaped; what JSON has no type for, a date say, is written as its text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=sort_keys, default=str)
