"""Convert the messages of a row to the form that chat templates read."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from swiftplug.data.read.conversation import RowError, check_unicode, has_value, load_json
from swiftplug.errors import nearest
from swiftplug.plugin.tokenizer import REASONING_KEYS

Messages = list[dict[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool")

# Other names of roles, as in ShareGPT, ms-swift, Gemini, Llama and OpenAI's older format.
ROLE_NAMES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool_response", "function_response", "function", "ipython"), "tool"),
}
# The keys of a question with its answer, where a list has such pairs in place of messages (ms-swift, Capybara).
PAIRS = (("human", "assistant"), ("input", "output"))
CALL_ROLES = ("function_call", "tool_call")  # turns whose content is a call, or a list of them
THOUGHT = re.compile(r"\s*(<think>.*?</think>)\s*", re.DOTALL)  # LLaMA-Factory writes it before the call

# Where each format has the arguments of a call, and whether a message trains.
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "kwargs", "tool_input")
TRAINING_KEYS = ("loss", "weight", "train", "training", "train_on_turn")
FLAGS = dict.fromkeys(("0", "0.0", "false"), False) | dict.fromkeys(("1", "1.0", "true"), True)
# Parts of a content, in the order in which templates write them; some formats have the type as a key.
PART_ORDER = {
    **dict.fromkeys(REASONING_KEYS, 0),
    **dict.fromkeys(("text", "input_text", "output_text"), 1),
    **dict.fromkeys(("tool_use", "tool_call", "function_call", "functionCall", "toolUse"), 2),
}
MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "loss", "loss_scale"}
"""The keys of messages that are read, as `parse_messages` returns them."""
RESULT_PARTS = ("tool_result", "toolResult", "functionResponse")

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
    for number, turn in enumerate(_split_pairs(value), 1):
        for part in _split_results(_with_role(turn)):
            message = _parse_message(part, f"message {number}")
            before = messages[-1] if messages else {}
            if _is_call(turn) and "tool_calls" not in message:
                raise RowError("a turn for a call has none", f"message {number}")
            if _is_call(turn) and not message["content"] and _without_calls(before) == _without_calls(message):
                # A call that follows a text or another call, with a turn of its own, is of the same message.
                before["tool_calls"] = [*before.get("tool_calls", []), *message["tool_calls"]]
            else:
                messages.append(message)
    return messages


def check_media(holder: Mapping[str, Any], where: str) -> None:
    """Refuse a row or message with images, audio or video, without which its text means something else."""
    for name in MEDIA:
        if name in holder and has_value(holder[name]):
            raise RowError(MEDIA_REASON, f"{where} has `{name}`")


def parse_tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Convert tool calls to the nested form that chat templates read.

    Args:
        value: A call, a list of calls, or the JSON text of either. A call has a `name` and arguments under one of
            `ARGUMENT_KEYS`, itself or within `function`; the arguments are an object or its JSON text.
        where: The place of the message, for errors.

    Raises:
        RowError: A call has no name, or its arguments cannot be found or read.
    """
    value = parse_json(value, "tool_calls") or []
    calls = []
    for call in value if isinstance(value, list) else [value]:
        call = parse_json(call, "tool_calls")
        function = call.get("function", call) if isinstance(call, dict) else {}
        if isinstance(function, str):  # as JSON, or the name alone, with the arguments beside it
            function = parse_json(function, "function") if function.lstrip()[:1] == "{" else {**call, "name": function}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError("a tool call has no name", where)
        arguments = _parse_arguments(function, where)
        read = ("name", *ARGUMENT_KEYS) if not isinstance(call.get("function"), dict) else ()
        other = {key: item for key, item in call.items() if key not in ("type", "function", *read)}
        call_id = next((other.pop(key) for key in ("id", "call_id", "toolUseId") if other.get(key) is not None), None)
        other = {key: item for key, item in ({"id": call_id} | other).items() if item is not None}
        calls.append({"type": "function", **other, "function": {"name": function["name"], "arguments": arguments}})
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
    if "<" in text and (found := PLACEHOLDER.search(text)):
        raise RowError(MEDIA_REASON, f"{where} has {found.group().strip()!r}")
    check_unicode(text, where)
    return text


def parse_json(value: Any, column: str) -> Any:
    """The value of a column. CSV and Parquet files may hold it as JSON text, which is parsed."""
    if not isinstance(value, str):
        return value
    try:
        return load_json(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"`{column}` is text that is not JSON", str(error)) from None


def describe(value: Any) -> str:
    """The type of a JSON value, for messages."""
    return "null" if value is None else JSON_TYPES.get(type(value), type(value).__name__)


def _split_pairs(turns: list[Any]) -> Iterator[Any]:
    """The turns, two for each pair of question and answer."""
    for turn in turns:
        keys = next((keys for keys in PAIRS if isinstance(turn, dict) and turn.keys() == {*keys}), None)
        if keys:
            yield {"role": "user", "content": turn[keys[0]]}
            yield {"role": "assistant", "content": turn[keys[1]]}
        else:
            yield turn


def _with_role(turn: Any) -> Any:
    """A turn with `role` and `content`, for one with `from` and `value`, or with another name of a role."""
    if not isinstance(turn, dict):
        return turn
    if "from" in turn and "role" not in turn:
        other = {key: value for key, value in turn.items() if key not in ("from", "value")}
        turn = {"role": turn["from"], "content": turn.get("value"), **other}
    if _is_call(turn):
        calls, content = turn.get("content"), ""
        if isinstance(calls, str) and (thought := THOUGHT.match(calls)):
            calls, content = calls[thought.end() :], thought[1]
        return {**turn, "role": "assistant", "content": content, "tool_calls": calls}
    role = turn.get("role")
    return {**turn, "role": ROLE_NAMES.get(role.lower(), role.lower())} if isinstance(role, str) else turn


def _is_call(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role", turn.get("from")) in CALL_ROLES


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in ("content", "tool_calls")}


def _split_results(turn: Any) -> list[Any]:
    """A message for each result of a tool among the parts of a turn (Anthropic's form), and one with the others."""
    parts = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(parts, list) or not any(_part_type(part) in RESULT_PARTS for part in parts):
        return [turn]
    turns, others = [], []
    for part in parts:
        if (kind := _part_type(part)) in RESULT_PARTS:
            result = part.get(kind, part)
            call_id = next((result[key] for key in ("tool_use_id", "toolUseId", "id") if key in result), None)
            content = result.get("content", result.get("response"))
            content = json.dumps(content, ensure_ascii=False) if isinstance(content, dict) else content
            turns.append({"role": "tool", "content": content, "tool_call_id": call_id, "name": result.get("name")})
        else:
            others.append(part)
    return [*turns, {**turn, "content": others}] if others else turns


def _part_type(part: Any) -> str:
    """The type of a part of a content; the type may also be the key that holds the rest, or the only text."""
    if not isinstance(part, dict):
        return "text" if isinstance(part, str) else describe(part)
    return str(part.get("type") or next((key for key in (*PART_ORDER, *RESULT_PARTS) if key in part), describe(part)))


def _parse_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RowError("a message is not an object", f"{where} is {describe(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise RowError("a message has an unknown role", f"{where} has {role!r}{nearest(str(role), ROLES)}")
    check_media(message, where)
    parsed = {key: value for key, value in message.items() if value is not None}
    content = message.get("content")
    if content in (None, ""):
        content = parsed.pop("refusal", None)  # as OpenAI gives it
    parsed["content"], reasoning, calls = _parse_content(content, where)
    for key in ("tool_calls", "function_call"):
        if value := parsed.pop(key, None):
            found = parse_tool_calls(value, where)
            if calls and calls != found:
                raise RowError("calls in two places of a message that differ", f"{where} has `{key}` and others")
            calls = found
    if calls and role != "assistant":
        raise RowError("a call in a message that is not the assistant's", f"{where} is {role!r}")
    if calls:
        parsed["tool_calls"] = calls
    for key in REASONING_KEYS:
        if not isinstance(thought := parsed.pop(key, None) or "", str):
            raise RowError(f"`{key}` is not text", f"{where} has {describe(thought)}")
        if thought and reasoning and thought != reasoning:
            raise RowError("reasoning in two places of a message that differs", f"{where} has `{key}` and another")
        reasoning = reasoning or thought
    if reasoning:
        parsed["reasoning_content"] = check_text(reasoning, where)
    _parse_training(parsed, where)
    return parsed


def _parse_training(parsed: dict[str, Any], where: str) -> None:
    """Bring what a message has about its training into `loss` (bool) and `loss_scale` (at least 0)."""
    given = {key: parsed.pop(key) for key in TRAINING_KEYS if key in parsed}
    flags = {key: FLAGS.get(str(value).strip().lower()) for key, value in given.items()}
    for key, flag in flags.items():
        if flag is None:
            expected = "0 or 1" if key == "weight" else "true or false"
            raise RowError(f"`{key}` is not {expected}", f"{where} has {given[key]!r}")
        if key == "weight" and flag and parsed["role"] != "assistant":
            raise RowError("`weight` is not for a message of this role", f"{where} is {parsed['role']!r} and has 1")
    if len({*flags.values()}) > 1:
        raise RowError("whether a message trains is given in two ways", f"{where} has {given}")
    # OpenAI's weight of 1 asks for nothing: it is the default.
    if flags and (flags.keys() != {"weight"} or not flags["weight"]):
        parsed["loss"] = next(iter(flags.values()))
    if has_value(parsed.get("train_detail")):
        raise RowError("`train_detail` is not read: a loss scale or `loss` chooses what trains", where)
    scale = parsed.get("loss_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
        raise RowError("`loss_scale` is not a finite number of at least 0", f"{where} has {scale!r}")


def _parse_content(value: Any, where: str) -> tuple[str, str, list[dict[str, Any]]]:
    """The text, the reasoning and the calls of a content: a string, null (empty), or a list of parts.

    Parts of one sort are joined.
    """
    if value is None or isinstance(value, str):
        return check_text(value or "", where), "", []
    if not isinstance(value, list):
        raise RowError("a content is not text", f"{where} is {describe(value)}")
    texts: list[str] = ["", ""]
    calls: list[dict[str, Any]] = []
    order = 0
    for part in value:
        kind = _part_type(part)
        if kind not in PART_ORDER:
            raise RowError(f"a content has a part that is not text: {kind!r}", f"{where} has a part of type {kind!r}")
        if order > PART_ORDER[kind]:
            raise RowError("a content has reasoning behind text, or text behind a call", where)
        order = PART_ORDER[kind]
        if order == 2:
            calls += parse_tool_calls([part.get(kind, part)], where)
            continue
        held = part if isinstance(part, str) else next((part[key] for key in (kind, "text") if key in part), None)
        if isinstance(held, list):  # Mistral's thinking is a list of parts
            held, _, _ = _parse_content(held, where)
        if not isinstance(held, str):
            raise RowError(f"a content has a part of type {kind!r} without text", where)
        texts[order] += held
    return check_text(texts[1], where), texts[0], calls


def _parse_arguments(function: dict[str, Any], where: str) -> dict[str, Any] | str:
    """The arguments of a call; text that is not meant as JSON, such as code, is left as it is."""
    found = [(key, function[key]) for key in ARGUMENT_KEYS if function.get(key) is not None]
    if len(found) != 1:
        names = f"{where} has {', '.join(f'`{key}`' for key, _ in found)}" if found else where
        raise RowError("a tool call has no arguments" if not found else "a tool call has arguments twice", names)
    [(key, value)] = found
    if isinstance(value, str) and (not value.strip() or value.strip()[0] in '{["'):
        try:
            value = load_json(value.strip() or "{}")
        except (ValueError, RecursionError) as error:
            raise RowError("a tool call's arguments are text that is not JSON", f"{where}: {error}") from None
        if isinstance(value, str):  # JSON text within JSON text
            return _parse_arguments({key: value}, where)
    if not isinstance(value, dict | str):
        raise RowError("a tool call's arguments are neither an object nor text", f"{where} has {describe(value)}")
    check_text(json.dumps(value, ensure_ascii=False, default=str), where)
    return value
