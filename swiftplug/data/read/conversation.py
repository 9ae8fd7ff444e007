"""The two forms of a row: as it was read, and as the conversation that every task works with."""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class RowError(Exception):
    """A row cannot be used; it is left out and counted.

    Attributes:
        reason: Why, in general terms: rows are counted by reason.
        detail: What was found in this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class RowOrigin:
    """Where a row was read from; printed as `file:line`.

    Attributes:
        file: The file, hub id or dataset plugin.
        line: The line in the file, or the number of the row if the source has no lines; from 1.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def has_value(value: Any) -> bool:
    """Whether a value of a row holds anything: null, an empty text, list or object, and a list of such hold nothing."""
    return any(map(has_value, value)) if isinstance(value, list) else value not in (None, "", {})


def load_json(text: str | bytes) -> Any:
    """Parse JSON. A key that an object has twice is a ValueError: there is no telling which of its values is meant."""
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return value


def check_unicode(text: str, where: str) -> None:
    """Refuse an unpaired surrogate, which no tokenizer and no file accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "a text contains an unpaired surrogate (invalid Unicode)", f"{where} has {text[error.start]!a}"
        ) from None


class RawRow(NamedTuple):
    """A row as read: usually a dictionary, but a file may contain anything."""

    row: Any
    origin: RowOrigin


@dataclass
class Conversation:
    """A row in the form that is rendered.

    Attributes:
        messages: Messages with `role` and `content`, and optionally `reasoning_content`, `tool_calls`, `name`,
            `tool_call_id`, and for training `loss` (bool) and `loss_scale` (float). Empty for a row of plain text.
        origin: Where the row was read from.
        tools: OpenAI-style descriptions of the tools, or None.
        text: The text of a row without messages (pretraining), or None.
        chat_template_kwargs: The row's `chat_template_kwargs`: variables for the chat template.
        columns: All other columns of the row.
        facts: What a task reads of the row besides its text: `rating` (bool), `margin` (float), `label` (JSON),
            `steps` (each a text and whether it is right).
        prompt_length: The number of messages before the answer, where the row separates them; else None.

    Raises:
        RowError: A text, a name or a key has an unpaired surrogate.
    """

    messages: list[dict[str, Any]]
    origin: RowOrigin
    tools: list[Any] | None = None
    text: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    prompt_length: int | None = None

    @property
    def answer_start(self) -> int:
        """Where the last answer begins: behind the row's prompt, else behind the last question."""
        if self.prompt_length is not None:
            return self.prompt_length
        return max((index + 1 for index, message in enumerate(self.messages) if message["role"] == "user"), default=0)

    def __post_init__(self) -> None:
        check_unicode(json.dumps(vars(self), ensure_ascii=False, default=str), "the row")
