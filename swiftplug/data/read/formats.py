"""Convert a row of any accepted format to a conversation."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin
from swiftplug.data.read.messages import (
    Messages,
    check_encoding,
    check_turns,
    describe,
    parse_json,
    parse_messages,
    parse_tool_calls,
)

LABELLED = ("a label in place of an answer", "sft trains answers; a label is for classification")

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}  # the other names are the same


def to_conversation(
    row: Any, origin: RowOrigin, task: Literal["pt", "sft", "sample"], columns: Mapping[str, str] | None = None
) -> Conversation:
    """Convert a row of any accepted format to a conversation.

    The format of a row is the first of `FORMATS` whose columns it has; else, and for `pt` always, its `text` is used.
    Of a preference row, the preferred answer is used. Any format may have `system` and `tools`.

    Args:
        row: The row, as parsed from JSON.
        origin: Where it was read from.
        task: What it is used for: `sft` needs an answer at the end, `sample` a question.
        columns: Columns to rename first, from the dataset's name to the one used here.

    Returns:
        The conversation; columns of no known meaning are in its `columns`.

    Raises:
        RowError: The row cannot be used.
    """
    if not isinstance(row, dict):
        raise RowError("a row is not an object", f"it is {describe(row)}")
    columns = columns or {}
    rest = {name: value for name, value in row.items() if name not in columns}
    rest |= {new: row[old] for old, new in columns.items() if old in row}

    has = {name for name, value in rest.items() if value is not None}
    parse = next((parse for needed, parse in FORMATS if needed <= has), None)
    if "text" in has and (task == "pt" or parse is None):
        return _text_conversation(rest, origin, task)
    if parse is None:
        found = ", ".join(map(repr, row)) or "none"
        raise RowError("no known columns", f"found {found}, expected e.g. 'messages' (data.columns renames)")
    messages = parse(rest)
    system = rest.pop("system", None)
    if isinstance(system, str) and system and messages and messages[0]["role"] not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": system})
    tools = _parse_tools(rest.pop("tools", None))
    if not messages:
        raise RowError("no messages")
    if task == "sft":
        _check_answer(messages[-1], rest.get("label"))
    check_turns(messages)
    return Conversation(messages=messages, origin=origin, tools=tools, columns=rest)


def _text_conversation(rest: dict[str, Any], origin: RowOrigin, task: str) -> Conversation:
    text = rest.pop("text")
    if not isinstance(text, str):
        raise RowError("`text` is not text", f"it is {describe(text)}")
    if task == "sft" and rest.get("label") is not None:
        raise RowError(*LABELLED)
    if not check_encoding(text, "`text`").strip():
        raise RowError("the text is empty")
    return Conversation(messages=[], origin=origin, text=text, columns=rest)


# The parsers of formats. Each removes the columns that it reads from the row.


def _parse_sharegpt(rest: dict[str, Any]) -> Messages:
    """Turns with `from` and `value`; those with `role` and `content` are left as they are."""
    turns = parse_json(rest.pop("conversations"), "conversations")
    if isinstance(turns, list):
        turns = [_parse_sharegpt_turn(turn, f"turn {number}") for number, turn in enumerate(turns, 1)]
    return parse_messages(turns, "conversations")


def _parse_sharegpt_turn(turn: Any, where: str) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    other = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if turn["from"] == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": parse_tool_calls(turn.get("value"), where), **other}
    role = SHAREGPT_ROLES.get(str(turn["from"]), turn["from"])
    return {"role": role, "content": turn.get("value"), **other}


def _parse_prompt(rest: dict[str, Any]) -> Messages:
    """A prompt and its completion, or its chosen answer; each a text or a list of messages."""
    prompt = _parse_turns(rest, "prompt", "user")
    answer = _parse_turns(rest, "completion" if rest.get("completion") is not None else "chosen", "assistant")
    if answer and answer[0]["role"] != "assistant":
        return answer  # it is the whole conversation, prompt included
    return _parse_history(rest) + prompt + answer


def _parse_alpaca(rest: dict[str, Any]) -> Messages:
    """`instruction` and `input`, joined by a line break, and `output`."""
    question = [part for part in (rest.pop("instruction", None), rest.pop("input", None)) if part not in (None, "")]
    for part in question:
        if not isinstance(part, str):
            raise RowError("`instruction` or `input` is not text", f"it is {describe(part)}")
    asked = [{"role": "user", "content": "\n".join(question)}] if question else []
    return _parse_history(rest) + asked + _parse_turns(rest, "output", "assistant")


FORMATS: tuple[tuple[set[str], Callable[[dict[str, Any]], Messages]], ...] = (
    ({"messages"}, lambda rest: parse_messages(rest.pop("messages"), "messages")),
    ({"conversations"}, _parse_sharegpt),
    ({"prompt"}, _parse_prompt),
    ({"chosen", "rejected"}, _parse_prompt),
    ({"instruction"}, _parse_alpaca),
    ({"output"}, _parse_alpaca),
)


def _parse_turns(rest: dict[str, Any], column: str, role: str) -> Messages:
    """A column with a list of messages, or with the text of one message of the given role."""
    value = rest.pop(column, None)
    if value is None:
        return []
    return parse_messages(value if isinstance(value, list) else [{"role": role, "content": value}], column)


def _parse_history(rest: dict[str, Any]) -> Messages:
    """Earlier rounds, as pairs of question and answer."""
    messages: Messages = []
    for pair in parse_json(rest.pop("history", None) or [], "history"):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
            raise RowError("`history` is not a list of pairs of texts", f"it has {json.dumps(pair, default=str)[:60]}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def _parse_tools(value: Any) -> list[Any] | None:
    value = parse_json(value or None, "tools")
    if not value:
        return None
    if not isinstance(value, list):
        raise RowError("`tools` is not a list", f"it is {describe(value)}")
    for tool in value:
        if not isinstance(tool, dict | str):
            raise RowError("a tool is neither text nor an object", f"it is {describe(tool)}")
    return [parse_json(tool, "tools") if isinstance(tool, str) and tool.lstrip()[:1] == "{" else tool for tool in value]


def _check_answer(last: dict[str, Any], label: Any) -> None:
    """Refuse a row without an answer to train on."""
    if last["role"] != "assistant":
        if label is not None:
            raise RowError(*LABELLED)
        raise RowError("no answer", f"the last message is {last['role']!r}, expected 'assistant'")
    if isinstance(label, bool):
        raise RowError("an answer labelled good or bad", "a true or false `label` is for alignment, not for sft")
    if not (last["content"].strip() or last.get("tool_calls") or last.get("reasoning_content")):
        raise RowError("the answer is empty")
