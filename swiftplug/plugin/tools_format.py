"""The contract of tools formats: how a prompt tells a model of its tools, and how calls and results are written."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


class ToolsFormat(Protocol):
    """Writes the text that describes the tools to the model: a function, or an object that is called like one.

    The text follows the row's own system message after a blank line, or is the system message. None instead of a text
    leaves the tools, their calls and their results to the chat template.

    Calls and results then become plain turns: a call is text at the end of the assistant's answer, a result is a turn
    of the user's. A format that writes them in a way of its own also has the attributes of `ToolTurns`; for one that
    has none, a call is written as a JSON object with `name` and `arguments`, a line each, and a result as it is.

    Example:
        >>> def plain(tool_names, tool_descs):
        ...     return "You may call: " + ", ".join(tool_names)
    """

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str | None:
        """Describe the tools.

        Args:
            tool_names: The name of each tool.
            tool_descs: The description of each: a string, or an object to be written as JSON (not ASCII-escaped).

        Returns:
            The text, or None to leave the tools to the chat template.
        """
        ...


@runtime_checkable
class ToolTurns(Protocol):
    """The optional part of a tools format. On a function they are attributes: `react.format_calls = format_calls`."""

    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Write what an assistant calls.

        Args:
            calls: For each call its `name` (str) and its `arguments` (a dictionary; a string where the row's
                arguments are not a JSON object).

        Returns:
            The text that stands in the answer, behind the answer's own content and a line break where it has one.
        """
        ...

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        """Write what the calls of one turn gave.

        Args:
            results: For each result its `content` (str), and its `name` (str, may be empty).

        Returns:
            The content of the user's turn that hands the results back.
        """
        ...
