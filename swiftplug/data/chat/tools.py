"""The input of the chat template: messages and tools.

A tools format writes tools, calls and results into the messages as plain text. Without one, or if it leaves a row to
the template, the template writes them.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

from swiftplug.data.read.conversation import Conversation, RowError
from swiftplug.errors import UserError
from swiftplug.plugin.tools_format import ToolsFormat, ToolTurns

_EXAMPLE_TOOL = {"name": "tool", "description": "", "parameters": {"type": "object", "properties": {}}}
_TRAINING_KEYS = ("loss", "loss_scale")


class Turns(NamedTuple):
    """The input of the chat template.

    Attributes:
        messages: Messages without nulls and without the keys that only training uses.
        tools: The tools that are left to the template, or None.
        sources: For each message, the index of the (first) message of the row that it was made from; -1 for none.
        roles: For each message, the role in the row: a tool result keeps `tool` when it becomes a user turn.
        chat_template_kwargs: Variables for the template.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    sources: list[int]
    roles: list[str]
    chat_template_kwargs: dict[str, Any]


def write_turns(conversation: Conversation, tools_format: ToolsFormat | None) -> Turns:
    """The turns of a conversation, with tools as the tools format writes them."""
    messages = [
        {key: value for key, value in message.items() if key not in _TRAINING_KEYS and value is not None}
        for message in conversation.messages
    ]
    roles = [message["role"] for message in messages]
    tools = conversation.tools or None
    unchanged = Turns(messages, tools, list(range(len(messages))), roles, conversation.chat_template_kwargs)
    if tools_format is None or not (tools or "tool" in roles or any("tool_calls" in message for message in messages)):
        return unchanged
    # A row may have calls but no tools. Then an example tool shows whether the format leaves rows to the template.
    descriptions = [_description(tool) for tool in tools or [_EXAMPLE_TOOL]]
    prompt = tools_format([description["name"] for description in descriptions], descriptions)
    if prompt is None:
        return unchanged
    if not isinstance(prompt, str):
        raise UserError(
            f"tools: the format returned {prompt!r:.60}, expected text, or None for the chat template's own"
        )
    plugin = tools_format.func if isinstance(tools_format, partial) else tools_format
    writer = plugin if isinstance(plugin, ToolTurns) else _PlainToolTurns()
    turns = Turns([], None, [], [], conversation.chat_template_kwargs)
    has_system = bool(roles) and roles[0] in ("system", "developer")
    if tools and not has_system:
        _add(turns, {"role": "system", "content": prompt}, -1, "system")
    for index, message in enumerate(messages):
        text = message_text(message)
        if roles[index] == "tool":
            if index and roles[index - 1] == "tool":
                continue
            results = takewhile(lambda result: result["role"] == "tool", messages[index:])
            named = [{"name": result.get("name", ""), "content": message_text(result)} for result in results]
            message = {"role": "user", "content": writer.format_results(named)}
        elif index == 0 and tools and has_system:
            message = {**message, "content": f"{text}\n\n{prompt}" if text else prompt}
        elif message.get("tool_calls"):
            calls = [call["function"] for call in message["tool_calls"]]
            written = writer.format_calls([{key: call[key] for key in ("name", "arguments")} for call in calls])
            message = {key: value for key, value in message.items() if key != "tool_calls"}
            message["content"] = f"{text}\n{written}" if text else written
        _add(turns, message, index, roles[index])
    return turns


def with_text_arguments(turns: Turns) -> Turns | None:
    """The turns with the arguments of calls as JSON text, for templates that need it; None if nothing changes."""
    messages = deepcopy(turns.messages)
    for message in messages:
        for call in message.get("tool_calls", []):
            function = call["function"]
            if not isinstance(function["arguments"], str):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return turns._replace(messages=messages) if messages != turns.messages else None


def message_text(message: Mapping[str, Any]) -> str:
    """A message's content as one text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)


class _PlainToolTurns:
    """Writes calls and results for a tools format that has no methods for them."""

    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        return "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        return "\n".join(result["content"] for result in results)


def tool_name(tool: Any) -> str:
    """The name of a tool; raises a RowError if its description has none."""
    return str(_description(tool)["name"])


def _description(tool: Any) -> dict[str, Any]:
    """The description of a tool, including its name."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("a tool is not described by a JSON object with a name", repr(tool)[:80])
    return dict(function)


def _add(turns: Turns, message: dict[str, Any], source: int, role: str) -> None:
    turns.messages.append(message)
    turns.sources.append(source)
    turns.roles.append(role)
