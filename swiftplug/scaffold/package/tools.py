"""A tools format: tools, calls and results as JSON between tags."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


class TaggedJSON:
    """Writes a JSON object on each line, between tags."""

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """The text after the system message. A description is an object with a JSON schema, or a string."""
        tools = [f"<tool>{as_json(desc)}</tool>" for desc in tool_descs]
        how = 'Call one with <call>{"name": ..., "arguments": ...}</call>'
        return "\n".join(["You can call these tools:", *tools, how])

    # The next two methods are optional. Without them a call is written as JSON, and a result as it is.
    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """The text with which the assistant calls tools."""
        return "\n".join(f"<call>{as_json({key: call[key] for key in ('name', 'arguments')})}</call>" for call in calls)

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        """The text of the turn with the results."""
        return "\n".join(f"<result>{result['content']}</result>" for result in results)


def as_json(value: Any) -> str:
    """A value as JSON in one line, with letters of all alphabets as they are; a text stays as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
