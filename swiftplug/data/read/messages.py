"""Convert the messages of a row to the form that chat templates read."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from swiftplug.data.read.conversation import RowError, has_value
from swiftplug.errors import nearest

Messages = list[dict[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool")

# Other names of roles, as in ShareGPT, ms-swift and OpenAI's older format.
ROLE_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function": "tool",
}
CALL_ROLES = ("function_call", "tool_call")  # turns whose content is a call, or a list of them

MEDIA_REASON = "images, audio or video, which a text model cannot read"
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
# What stands for an image in the texts of multi-modal datasets.
PLACEHOLDER = re.compile(r"\A\s*<(image|audio|video)>|<(image|audio|video)>\s*\Z|<\|(image|audio|video|vision)\w*\|>")

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
    messages: Messages = []
    for number, turn in enumerate(value, 1):
        message = _parse_message(_with_role(turn), f"message {number}")
        before = messages[-1] if messages else {}
        if _is_call(turn) and _without_calls(before) == _without_calls(message):
            # A call that follows a text or another call, with a turn of its own, is of the same message.
            before["tool_calls"] = [*before.get("tool_calls", []), *message["tool_calls"]]
        else:
            messages.append(message)
    return messages


def check_media(holder: Mapping[str, Any], where: str) -> None:
    """Refuse a row or message with images, audio or video, without which its text means something else."""
    for name in MEDIA:
        if has_value(holder.get(name)):
            raise RowError(MEDIA_REASON, f"{where} has `{name}`")


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


def check_text(text: str, where: str) -> str:
    """Refuse a text with the placeholder of an image, or with an unpaired surrogate, which no tokenizer accepts."""
    if found := PLACEHOLDER.search(text):
        raise RowError(MEDIA_REASON, f"{where} has {found.group().strip()!r}")
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


def _with_role(turn: Any) -> Any:
    """A turn with `role` and `content`, for one with `from` and `value`, or with another name of a role."""
    if not isinstance(turn, dict):
        return turn
    if "from" in turn and "role" not in turn:
        other = {key: value for key, value in turn.items() if key not in ("from", "value")}
        turn = {"role": turn["from"], "content": turn.get("value"), **other}
    if _is_call(turn):
        return {**turn, "role": "assistant", "content": "", "tool_calls": turn.get("content")}
    role = turn.get("role")
    return {**turn, "role": ROLE_NAMES.get(role, role)} if isinstance(role, str) else turn


def _is_call(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role", turn.get("from")) in CALL_ROLES


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in ("content", "tool_calls")}


def _parse_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RowError("a message is not an object", f"{where} is {describe(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise RowError("a message has an unknown role", f"{where} has {role!r}{nearest(str(role), ROLES)}")
    check_media(message, where)
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
        return check_text(value or "", where)
    if not isinstance(value, list):
        raise RowError("a content is not text", f"{where} is {describe(value)}")
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else describe(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RowError("a content is not text", f"{where} has a part of type {kind!r}; only text is supported")
    return check_text("".join(part["text"] for part in value), where)


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
