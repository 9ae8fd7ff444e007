"""The tools format of Hermes 2 Pro, which Qwen and others share: JSON between tags."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from swiftplug.builtin.tools.text import as_text


class Hermes:
    """Signatures in `<tools>`, calls in `<tool_call>`, results in `<tool_response>`."""

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """Describe the tools.

        Args:
            tool_names: The name of each tool.
            tool_descs: The description of each: an object, a string of JSON, or plain text, which is written as an
                object with the tool's `name` and this `description`.

        Returns:
            The text of the prompt.
        """
        signatures = "\n".join(_signature(name, desc) for name, desc in zip(tool_names, tool_descs, strict=True))
        return f"""\
You can call functions to help the user. Here are their signatures, one JSON object a line:
<tools>
{signatures}
</tools>

To call a function, write a JSON object with its name and its arguments between <tool_call> and </tool_call>, for each \
call anew:
<tool_call>
{{"name": "the function's name", "arguments": {{"a parameter": "its value"}}}}
</tool_call>

What a call returned is then given to you between <tool_response> and </tool_response>."""

    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """A tagged JSON object for each call."""
        objects = ({"name": call["name"], "arguments": call["arguments"]} for call in calls)
        return "\n".join(f"<tool_call>\n{as_text(call)}\n</tool_call>" for call in objects)

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        """A tagged text for each result."""
        return "\n".join(f"<tool_response>\n{result['content']}\n</tool_response>" for result in results)


def _signature(name: str, desc: Any) -> str:
    """The description as one line that holds a JSON object."""
    if not isinstance(desc, str):
        return as_text(desc)
    try:
        parsed = json.loads(desc)
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        return as_text({"name": name, "description": desc})
    return as_text(parsed) if "\n" in desc else desc


hermes = Hermes()
