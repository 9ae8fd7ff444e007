"""Write tools, calls and results into plain turns, where a tools format does so instead of the chat template."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from swiftplug.data.read.conversation import Conversation, RowError
from swiftplug.plugin.tools_format import ToolsFormat, ToolTurns

_PROBE = {"name": "tool", "description": "", "parameters": {"type": "object", "properties": {}}}
_TRAINING_KEYS = ("loss", "loss_scale")
_PLAIN = {"role", "content"}


class Turns(NamedTuple):
    """What the chat template is given.

    Attributes:
        messages: Messages, without what is for training alone.
        tools: The tools that are left to the template, or None.
        sources: For each message the first message of the row that it was made of.
        roles: For each message that one's role: a tool's result stays one when it becomes the user's turn.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    sources: list[int]
    roles: list[str]


def write_turns(conversation: Conversation, tools_format: ToolsFormat | None) -> Turns:
    """The turns of a conversation as a tools format writes them.

    Args:
        conversation: The row.
        tools_format: The format, or None to leave tools to the chat template.

    Returns:
        The turns.

    Raises:
        RowError: If a description of a tool has no name.
    """
    messages = [_rendered_part(message) for message in conversation.messages]
    roles = [message["role"] for message in messages]
    tools = conversation.tools or None
    speaks_of_tools = tools or "tool" in roles or any("tool_calls" in message for message in messages)
    prompt = _prompt(tools, tools_format) if tools_format is not None and speaks_of_tools else None
    if tools_format is None or prompt is None:
        return Turns(messages, tools, list(range(len(messages))), roles)
    turns = Turns([], None, [], [])
    if tools and (not roles or roles[0] not in ("system", "developer")):
        _add(turns, {"role": "system", "content": prompt}, -1, "system")
    for index, message in enumerate(messages):
        if index == 0 and tools and message["role"] in ("system", "developer"):
            own = _text(message)
            message = {**message, "content": f"{own}\n\n{prompt}" if own else prompt}
        if message["role"] == "tool" and index and roles[index - 1] == "tool":
            continue
        if message["role"] == "tool":
            results = _results(messages, index)
            message = {"role": "user", "content": _format_results(tools_format, results)}
        elif message.get("tool_calls"):
            calls = _format_calls(tools_format, [_call(call) for call in message["tool_calls"]])
            own = _text(message)
            message = {key: value for key, value in message.items() if key != "tool_calls"}
            message["content"] = f"{own}\n{calls}" if own else calls
        _add(turns, message, index, roles[index])
    return turns


def _rendered_part(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its nulls and what is for training alone."""
    if message.keys() == _PLAIN and message["content"] is not None:
        return message
    return {key: value for key, value in message.items() if key not in _TRAINING_KEYS and value is not None}


def _prompt(tools: list[Any] | None, tools_format: ToolsFormat) -> str | None:
    """The text of the tools; for a row without tools, a text where the format writes one at all."""
    descriptions = [_description(tool) for tool in tools or [_PROBE]]
    return tools_format([name for name, _ in descriptions], [description for _, description in descriptions])


def _description(tool: Any) -> tuple[str, Any]:
    """A tool's name and what describes it."""
    if isinstance(tool, str):
        try:
            tool = json.loads(tool)
        except json.JSONDecodeError:
            raise RowError("a tool is not described by a JSON object", repr(tool)[:80]) from None
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("a tool has no name", repr(tool)[:80])
    return function["name"], dict(function)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's name and arguments, read from JSON where a row has them so."""
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except json.JSONDecodeError:
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {"name": function.get("name", ""), "arguments": arguments}


def _results(messages: list[dict[str, Any]], first: int) -> list[dict[str, str]]:
    """The results that stand together from a message on."""
    results = []
    for message in messages[first:]:
        if message["role"] != "tool":
            break
        results.append({"name": message.get("name", ""), "content": _text(message)})
    return results


def with_text_arguments(turns: Turns) -> Turns | None:
    """The turns with the arguments of calls as JSON text, which some templates want; None where nothing changes."""
    messages = [
        {**message, "tool_calls": [_text_arguments(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in turns.messages
    ]
    return turns._replace(messages=messages) if messages != turns.messages else None


def _text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _text_arguments(call["function"])}
    arguments = call.get("arguments")
    return {**call, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)}


def _format_calls(tools_format: ToolsFormat, calls: list[dict[str, Any]]) -> str:
    writer = _writer(tools_format)
    if writer:
        return writer.format_calls(calls)
    return "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)


def _format_results(tools_format: ToolsFormat, results: list[dict[str, str]]) -> str:
    writer = _writer(tools_format)
    if writer:
        return writer.format_results(results)
    return "\n".join(result["content"] for result in results)


def _writer(tools_format: ToolsFormat) -> ToolTurns | None:
    """What writes the calls and results of a format; a function whose options are bound has it beneath."""
    plugin = tools_format.func if isinstance(tools_format, partial) else tools_format
    return plugin if isinstance(plugin, ToolTurns) else None


def _text(message: Mapping[str, Any]) -> str:
    """A message's content as one text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)


def _add(turns: Turns, message: dict[str, Any], source: int, role: str) -> None:
    turns.messages.append(message)
    turns.sources.append(source)
    turns.roles.append(role)
