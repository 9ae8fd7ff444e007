"""Convert the messages of a row to the form that chat templates read."""

import json
import math
from typing import Any

from swiftplug.data.read.conversation import RowError
from swiftplug.errors import nearest

Messages = list[dict[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool")

# Which role may follow which; "" is the start, the only place for a system message.
FOLLOWS = {
    "": {"system", "developer", "user"},
    "system": {"user"},
    "developer": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}

JSON_TYPES = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


def parse_messages(value: Any, column: str) -> Messages:
    """Check a list of messages (or its JSON text), and bring each message into one form.

    Args:
        value: The list as it is in the row.
        column: The name of its column, for errors.

    Returns:
        Messages with `role` and `content` (str), and their other values that are not null.

    Raises:
        RowError: It is not a list of messages, or a message has an unknown role or a value of the wrong type.
    """
    value = parse_json(value, column)
    if not isinstance(value, list):
        raise RowError(f"`{column}` is not a list of messages", f"it is {describe(value)}")
    return [_parse_message(message, f"message {number}") for number, message in enumerate(value, 1)]


def parse_tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Convert tool calls to the nested form that chat templates read.

    Args:
        value: A list (or its JSON text) of `{"function": {"name", "arguments"}}` or of `{"name", "arguments"}`; the
            arguments may be the JSON text of an object, as in OpenAI's format, and become that object.
        where: The place of the message, for errors.

    Raises:
        RowError: A call has no name, or its arguments are neither an object nor text.
    """
    value = parse_json(value, "tool_calls")
    calls = []
    for call in value if isinstance(value, list) else [value]:
        call = parse_json(call, "tool_calls")
        function = call.get("function", call) if isinstance(call, dict) else {}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError("a tool call has no name", where)
        arguments = _parse_arguments(function.get("arguments") or {}, where)
        outer = {key: item for key, item in call.items() if key not in ("name", "arguments") and item is not None}
        calls.append({"type": "function", **outer, "function": {"name": function["name"], "arguments": arguments}})
    return calls


def check_turns(messages: Messages) -> None:
    """Refuse roles out of order: at most one system message first, then user and assistant in turn, with tools."""
    before = ""
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role not in FOLLOWS[before]:
            place = f"after {before!r}" if before else "first"
            expected = " or ".join(map(repr, sorted(FOLLOWS[before])))
            raise RowError("roles out of order", f"message {number} is {role!r} {place}, expected {expected}")
        before = role


def check_encoding(text: str, where: str) -> str:
    """Refuse a text that is not valid Unicode: JSON can spell an unpaired surrogate, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "a text contains an unpaired surrogate (invalid Unicode)", f"{where} has {text[error.start]!a}"
        ) from None
    return text


def parse_json(value: Any, column: str) -> Any:
    """The value of a column. CSV and Parquet files may hold it as JSON text, which is parsed."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError(f"`{column}` is text that is not JSON", str(error)) from None


def describe(value: Any) -> str:
    """The type of a JSON value, for messages."""
    return "null" if value is None else JSON_TYPES.get(type(value), type(value).__name__)


def _parse_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RowError("a message is not an object", f"{where} is {describe(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise RowError("a message has an unknown role", f"{where} has {role!r}{nearest(str(role), ROLES)}")
    parsed = {key: value for key, value in message.items() if value is not None}
    parsed["content"] = _join_content(message.get("content"), where)
    if parsed.pop("tool_calls", None):
        parsed["tool_calls"] = parse_tool_calls(message["tool_calls"], where)
    if not isinstance(parsed.get("reasoning_content", ""), str):
        raise RowError("`reasoning_content` is not text", f"{where} has {describe(parsed['reasoning_content'])}")
    if not isinstance(parsed.get("loss", True), bool):
        raise RowError("`loss` is not true or false", f"{where} has {parsed['loss']!r}")
    scale = parsed.get("loss_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise RowError("`loss_scale` is not a finite number", f"{where} has {scale!r}")
    return parsed


def _join_content(value: Any, where: str) -> str:
    """The text of a content: a string, null (empty), or a list of text parts, which are joined."""
    if value is None or isinstance(value, str):
        return check_encoding(value or "", where)
    if not isinstance(value, list):
        raise RowError("a content is not text", f"{where} is {describe(value)}")
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else describe(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RowError("a content is not text", f"{where} has a part of type {kind!r}; only text is supported")
    return check_encoding("".join(part["text"] for part in value), where)


def _parse_arguments(value: Any, where: str) -> dict[str, Any] | str:
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            return value
        return parsed if isinstance(parsed, dict) else value
    if not isinstance(value, dict):
        raise RowError("a tool call's arguments are neither an object nor text", f"{where} has {describe(value)}")
    return value
