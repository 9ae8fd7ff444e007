"""The rows and candidates of a sampling run, and how a row of a dataset becomes a question."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swiftplug.data.chat.tools import write_turns
from swiftplug.data.read.conversation import Conversation, RawRow, RowError, RowOrigin
from swiftplug.data.read.formats import parse_label, to_conversation
from swiftplug.data.read.tasks import question_of
from swiftplug.plugin import Rows
from swiftplug.plugin.engine import Prompt
from swiftplug.plugin.tools_format import ToolsFormat

REFERENCE = "reference"
"""The `finish_reason` of a candidate that is the reference answer, put among the candidates on request."""

_CUT_OFF = ("length", "max_tokens", "max_output_tokens", "model_length")  # as servers name the token limit

REFERENCE_COLUMNS = ("reference", "solution", "answer")
TEMPLATE_KWARGS = "chat_template_kwargs"
READ_COLUMNS = {*REFERENCE_COLUMNS, TEMPLATE_KWARGS}
"""The columns that are read without a scorer."""
_PLAIN, _SORTED = (json.JSONEncoder(ensure_ascii=False, sort_keys=by_key, default=str) for by_key in (False, True))
_SYSTEM_ROLES = ("system", "developer")

WriteAnswer = Callable[[Conversation], str]
_MORE_THAN_TEXT = {"tool_calls", "reasoning_content"}

Reward = float | list[float]
"""What a scorer gives a candidate: one number, or one per step."""


@dataclass
class Candidate:
    """One answer to a row. What scoring and selection add is empty until then.

    Attributes:
        index: Its number among the row's candidates, from 0.
        text: The answer, the last one where an environment had it go on.
        finish_reason: Why it ended: `stop`, `length`, `reference`, or what a server reports.
        rewards: By scorer; None before scoring. A scorer that gave none is not in it.
        unscored: By scorer that gave no reward, the reason.
        scores: By scorer, its reward as one number (the rewards of a PRM's steps are reduced to one).
        score: The weighted mean that ranks it; None where a scorer gave no reward.
        right: Whether the ORMs judge it right; None if none of them judges.
        answer: Its final answer, which the majority vote counts; None if it has none.
        reasons: Why it was not kept; empty if it was.
        turns: The messages between the prompt and the answer: earlier answers, and those of an environment.
    """

    index: int
    text: str
    finish_reason: str
    rewards: dict[str, Reward] | None = None
    unscored: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    right: bool | None = None
    answer: str | None = None
    reasons: list[str] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What follows the prompt, the answer last."""
        return [*self.turns, {"role": "assistant", "content": self.text}]

    @property
    def sampled(self) -> bool:
        """Whether it was sampled. The reference was not: statistics ignore it."""
        return self.finish_reason != REFERENCE


@dataclass
class Row:
    """One row of a sampling run.

    Attributes:
        id: A hash of its content; repeats of a row get a number.
        origin: Where it was read, as `file:line`, and of a row that cannot be used, what was found there.
        prompt: The messages up to the question.
        tools: Descriptions of the tools, or None.
        columns: Every other column; also `chat_template_kwargs`, if it has any.
        reference: The right answer: the last assistant message (unless the row's `label` is false), else a column
            `reference`, `solution` or `answer`.
        problem: Why it cannot be used; empty if it can.
        failure: Why the engine failed at it; empty if it did not, or has not tried yet.
        position: Its number in the dataset, from 0.
        candidates: Its candidates, by index.
        left_out: Why selection kept none of its candidates; empty if it kept one.
    """

    id: str
    origin: str
    prompt: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    reference: Any = None
    problem: str = ""
    failure: str = ""
    position: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    left_out: str = ""

    @property
    def ground_truth(self) -> str | None:
        """The reference as text, as scorers get it; what is no text is written as in JSON."""
        return self.reference if self.reference is None or isinstance(self.reference, str) else to_json(self.reference)

    def as_conversation(self) -> Conversation:
        """The prompt in the form that is rendered."""
        file, _, line = self.origin.rpartition(":")
        chat_template_kwargs = self.columns.get(TEMPLATE_KWARGS, {})
        return Conversation(self.prompt, RowOrigin(file, int(line)), self.tools, None, chat_template_kwargs)

    def as_prompt(self, tools_format: ToolsFormat | None) -> Prompt:
        """The prompt as engines get it; raises a RowError if the tools format refuses it."""
        turns = write_turns(self.as_conversation(), tools_format)
        return Prompt(self.id, turns.messages, turns.tools, turns.chat_template_kwargs)


def read_rows(
    rows: Iterable[RawRow], columns: Mapping[str, str], system: str | None, write_answer: WriteAnswer
) -> Iterator[Row]:
    """Read rows as questions, in order; an unusable row has a `problem`.

    `columns` renames columns of the datasets; `system` is the system message of rows that have none; `write_answer`
    writes the last answer of a conversation, if it has calls or reasoning, as candidates are written.
    """
    for raw in rows:
        try:
            yield _to_row(raw, columns, system, write_answer)
        except RowError as error:
            origin = f"{raw.origin} ({error.detail})" if error.detail else str(raw.origin)
            yield Row(_hash(raw.row), origin, problem=error.reason)


def _to_row(raw: RawRow, columns: Mapping[str, str], system: str | None, write_answer: WriteAnswer) -> Row:
    read = to_conversation(raw.row, raw.origin, Rows.PROMPTS, columns)
    reference, last = None, read.messages[-1] if read.messages else {}
    if last.get("role") == "assistant":
        answer = (write_answer(read) if _MORE_THAN_TEXT & last.keys() else str(last["content"])).strip()
        reference = answer if answer and parse_label(read.columns) is not False else None
    messages = question_of(read).messages
    if reference is None:
        given = (read.columns.get(name) for name in REFERENCE_COLUMNS)
        reference = next((value for value in given if is_reference(value)), None)
    if read.chat_template_kwargs:
        read.columns[TEMPLATE_KWARGS] = read.chat_template_kwargs
    check_encodable([read.tools, reference, read.columns])
    row_id = _hash([messages, read.tools, reference, read.columns])
    if system and messages[0]["role"] not in _SYSTEM_ROLES:
        messages = [{"role": "system", "content": system}, *messages]
    return Row(row_id, str(raw.origin), messages, read.tools, read.columns, reference)


def answer_text(message: Mapping[str, Any]) -> str:
    """A message as the text of a candidate, as engines write it: its reasoning in a `<think>` block, its content."""
    reasoning = message.get("reasoning_content")
    return (f"<think>\n{reasoning}\n</think>\n\n" if reasoning else "") + str(message["content"])


def reference_candidate(row: Row, index: int) -> Candidate:
    """The reference answer as one of the candidates."""
    return Candidate(index, str(row.ground_truth), REFERENCE)


def is_cut_off(finish_reason: str) -> bool:
    """Whether a `finish_reason` is that of an answer cut off at the token limit."""
    return finish_reason.lower() in _CUT_OFF


def is_reference(value: Any) -> bool:
    """Whether answers can be compared with a value; an empty cell of a CSV file is no reference."""
    return value is not None and bool(str(value).strip())


def check_encodable(value: Any) -> None:
    """Raise RowError for an unpaired surrogate, which JSON can escape but UTF-8 cannot encode."""
    try:
        to_json(value).encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "a text contains an unpaired surrogate (invalid Unicode)", f"{error.object[error.start]!a}"
        ) from None


def prompt_key(prompt: list[dict[str, Any]]) -> str:
    """A hash of a prompt's roles and contents without the system message, by which equal prompts are found."""
    turns = [message for message in prompt if message["role"] not in _SYSTEM_ROLES]
    return _hash([[message["role"], message.get("content") or ""] for message in turns])


def to_json(value: Any, *, sort_keys: bool = False) -> str:
    """JSON without ASCII escapes; values that JSON has no type for, such as dates, become strings."""
    return (_SORTED if sort_keys else _PLAIN).encode(value)


def _hash(content: Any) -> str:
    text = to_json(content, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
