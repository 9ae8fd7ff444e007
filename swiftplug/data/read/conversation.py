"""A row after its format is forgotten: messages or a text, and where it came from."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Where a row was read, as errors and counts say it.

    Attributes:
        file: The file, hub id or dataset plugin.
        line: The line in the file (from 1), or the row's number (from 1) where the source has no lines.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass
class Conversation:
    """One row in the form that every task reads.

    Attributes:
        messages: `role` and `content`, and optionally `reasoning_content`, `tool_calls`, `name`, `tool_call_id`, and
            for training `loss` (bool) and `loss_scale` (float). Empty for a row of plain text.
        origin: Where the row was read.
        tools: OpenAI-style descriptions of the tools, or None.
        text: The text of a row without messages (pretraining), or None.
        columns: Every other column of the row.
    """

    messages: list[dict[str, Any]]
    origin: Origin
    tools: list[Any] | None = None
    text: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
