"""The contract of tools formats: how a prompt describes tools to a model, and how calls and results are written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


class ToolsFormat(Protocol):
    """Writes the text that describes the tools to the model: a function, or an object with `__call__`.

    The text follows the row's own system message after a blank line; without a system message, the text becomes it.
    If a format returns None, the chat template writes the tools, the calls and the results.

    Calls and results become plain turns: a call is text at the end of the assistant's answer, a result is a user turn.
    A call is written as one JSON object with `name` and `arguments` per line, a result as it is. A format that writes
    them differently also has the methods of `ToolTurns`.

    Example:
        >>> def plain(tool_names, tool_descs):
        ...     return "You may call: " + ", ".join(tool_names)
    """

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str | None:
        """Describe the tools.

        Args:
            tool_names: The name of each tool.
            tool_descs: The description of each tool: a string, or an object to be written as JSON (not ASCII-escaped).

        Returns:
            The text, or None if the chat template is to write the tools.
        """
        ...


@runtime_checkable
class ToolTurns(Protocol):
    """The optional methods of a tools format; attributes of a function: `react.format_calls = format_calls`."""

    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Write the calls of one assistant turn.

        Args:
            calls: For each call its `name` (str) and its `arguments` (a dictionary, or a string if the arguments in the
                row are not a JSON object).

        Returns:
            The text. It follows the content of the answer after a line break.
        """
        ...

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        """Write the results of the calls of one turn.

        Args:
            results: For each result its `content` (str) and its `name` (str, may be empty).

        Returns:
            The content of the user turn with the results.
        """
        ...


@dataclass(frozen=True)
class AgentKeyword:
    """The words that begin the lines of a call and of its result: `ToolTurns` for formats in the style of ReAct.

    Attributes:
        action: Before the name of the tool.
        action_input: Before the arguments, on the next line.
        observation: Before the result.
    """

    action: str = "Action:"
    action_input: str = "Action Input:"
    observation: str = "Observation:"

    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Write two lines for each call, the arguments as JSON; see `ToolTurns`."""
        return "\n".join(
            f"{self.action} {call['name']}\n{self.action_input} {as_text(call['arguments'])}" for call in calls
        )

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        """Write one observation for each result; see `ToolTurns`."""
        return "\n".join(f"{self.observation} {result['content']}" for result in results)


def as_text(value: Any) -> str:
    """A string as it is, anything else as JSON, not ASCII-escaped."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
