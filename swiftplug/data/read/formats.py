"""Convert a row of any accepted format to a conversation."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin, has_value, load_json
from swiftplug.data.read.messages import (
    Messages,
    check_media,
    check_text,
    check_turns,
    describe,
    parse_json,
    parse_messages,
)
from swiftplug.plugin import Rows

LABELLED = ("a label in place of an answer", "task seq_cls takes labels")

# What datasets call a column that has another name here, in lower case. Only suggestions are made of it.
SIMILAR = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns"),
    "prompt": ("prompt", "instruction", "question", "query", "problem", "input", "inputs", "human", "user"),
    "completion": (
        *("completion", "output", "response", "answer", "solution", "outputs", "target", "assistant", "gpt"),
        *("answers", "targets"),
    ),
    "system": ("system", "system_prompt", "system_message"),
    "text": ("text", "content", "document", "article", "body", "code"),
}

# A transcript as in HH-RLHF. In a prompt the last answer is empty.
TRANSCRIPT = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)
SYSTEM_ROLES = ("system", "developer")
TRANSCRIPT_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")

# What `apply_chat_template` takes besides the template's own variables.
RESERVED = {
    *("conversation", "conversations", "messages", "tools", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}


def to_conversation(row: Any, origin: RowOrigin, rows: Rows, columns: Mapping[str, str] | None = None) -> Conversation:
    """Convert a row of any accepted format to a conversation.

    The format of a row is the first of `FORMATS` whose columns it has; else, and for `Rows.TEXT` always, its `text` is
    used. Of a preference row, the preferred answer is used; of prompt and completion, only the completion trains. Any
    format may have `system`, `tools` (or OpenAI's older `functions`) and `chat_template_kwargs`.

    Args:
        row: The row, as parsed from JSON.
        origin: Where it was read from.
        rows: What it is used for: where answers train, one is needed at the end; for `Rows.PROMPTS` a question.
        columns: Columns to rename first, from the dataset's name to the one used here.

    Returns:
        The conversation; columns of no known meaning are in its `columns`.

    Raises:
        RowError: The row cannot be used.
    """
    if not isinstance(row, dict):
        raise RowError("a row is not an object", f"it is {describe(row)}: {json.dumps(row, default=str)[:60]}")
    columns = columns or {}
    rest = {name: value for name, value in row.items() if name not in columns}
    for old, new in columns.items():
        if has_value(row.get(old)) or (old in row and new not in rest):
            rest[new] = row[old]

    check_media(rest, "the row")
    has = {name for name, value in rest.items() if value is not None}
    format = next((format for format in FORMATS if format.columns <= has), None)
    if "text" in has and (rows is Rows.TEXT or format is None):
        return _text_conversation(rest, origin, rows)
    if format is None:
        found = ", ".join(f"{name!r}{'' if row[name] is not None else ' (null)'}" for name in row) or "none"
        raise RowError("no known columns", f"found {found}, expected e.g. 'messages'{_suggest_columns(has, rows)}")
    given = dict(rest)
    messages, after_prompt = format.parse(rest), None
    for column in format.answer, "chosen":
        if not messages or messages[-1]["role"] != "assistant" or column == "completion":
            before, messages = messages, add_answer(messages, parse_turns(rest, column, "assistant"))
            if messages[: len(before)] != before:  # the answer brings another conversation
                rest |= {name: given[name] for name in format.columns & given.keys()}
            elif before and len(messages) > len(before):
                after_prompt = len(messages) - len(before)
    is_conversation = format.columns & {"messages", "conversations"}
    if not is_conversation and {message["role"] for message in messages} == {"assistant"}:
        raise RowError("no question", f"there is only an answer{_suggest_rename('prompt', 'prompt', rest)}")
    if "system" in has:
        messages = _add_system(messages, rest)
    tools = _parse_tools(rest.pop("tools", None))
    if functions := _parse_tools(rest.pop("functions", None)):
        if tools:
            raise RowError("both `tools` and `functions`")
        tools = [{"type": "function", "function": function} for function in functions]
    chat_template_kwargs = _parse_chat_template_kwargs(rest.pop("chat_template_kwargs", None))
    if not messages:
        raise RowError("no messages")
    if rows in (Rows.ANSWERS, Rows.PAIRS, Rows.RATED):
        _check_answer(messages[-1], rest, format, rows)
    check_turns(messages)
    prompt_length = None if after_prompt is None else len(messages) - after_prompt
    return Conversation(messages, origin, tools, None, chat_template_kwargs, rest, prompt_length=prompt_length)


def _text_conversation(rest: dict[str, Any], origin: RowOrigin, rows: Rows) -> Conversation:
    text = rest.pop("text")
    if not isinstance(text, str):
        raise RowError("`text` is not text", f"it is {describe(text)}")
    if rows is Rows.ANSWERS and rest.get("label") is not None:
        raise RowError(*LABELLED)
    if not check_text(text, "`text`").strip():
        raise RowError("the text is empty")
    return Conversation(messages=[], origin=origin, text=text, columns=rest)


# The parsers of formats. Each removes the columns that it reads from the row.


def _parse_prompt(rest: dict[str, Any]) -> Messages:
    """A text, or a list of messages; its answers do not train unless they say so."""
    prompt = parse_turns(rest, "prompt", "user")
    untrained = [{"loss": False, **message} if message["role"] == "assistant" else message for message in prompt]
    return _parse_history(rest) + untrained


def _parse_alpaca(rest: dict[str, Any]) -> Messages:
    """`instruction` and `input`, joined by a line break."""
    question = [part for part in (rest.pop("instruction", None), rest.pop("input", None)) if part not in (None, "")]
    for part in question:
        if not isinstance(part, str):
            raise RowError("`instruction` or `input` is not text", f"it is {describe(part)}")
    return _parse_history(rest) + ([{"role": "user", "content": "\n".join(question)}] if question else [])


class Format(NamedTuple):
    """A format of rows.

    Attributes:
        columns: The columns that such a row has.
        parse: The messages that the columns hold, which it removes from the row.
        answer: The column of the answer, if they do not hold it; where it is missing, `chosen` is read.
    """

    columns: set[str]
    parse: Callable[[dict[str, Any]], Messages]
    answer: str = "chosen"


FORMATS = (
    Format({"messages"}, lambda rest: parse_messages(rest.pop("messages"), "messages")),
    Format({"conversations"}, lambda rest: parse_messages(rest.pop("conversations"), "conversations")),
    Format({"prompt"}, _parse_prompt, "completion"),
    Format({"instruction"}, _parse_alpaca, "output"),
    Format({"input", "output"}, _parse_alpaca, "output"),
    Format({"query"}, lambda rest: _parse_history(rest) + parse_turns(rest, "query", "user"), "response"),
    Format({"chosen", "rejected"}, lambda rest: []),
)

REJECTED = ("rejected_response", "rejected", "rejected_messages")
"""The columns that hold the rejected answer of a preference row."""

LABELS = ("label", "kto_tag")
"""The columns that say whether the answer of a row is good (KTO)."""

COLUMNS = {"text", "system", "tools", "functions", "chat_template_kwargs", "history", "input"}.union(
    *(format.columns | {format.answer} for format in FORMATS)
)
"""Every column that some format reads."""


def _add_system(messages: Messages, rest: dict[str, Any]) -> Messages:
    """The messages with the row's `system` first; if they have a system message, the column is left in the row."""
    if not isinstance(rest["system"], str):
        raise RowError("`system` is not text", f"it is {describe(rest['system'])}")
    own = messages[0]["content"] if messages and messages[0]["role"] in SYSTEM_ROLES else None
    if own not in (None, rest["system"]):
        return messages
    system = check_text(rest.pop("system"), "`system`")
    return [{"role": "system", "content": system}, *messages] if system and messages and own is None else messages


def add_answer(before: Messages, answer: Messages) -> Messages:
    """The messages with the answer, or the answer alone if it is a conversation that does not begin with them."""
    if not answer or answer[0]["role"] == "assistant":
        return before + answer
    repeated = [(message["role"], message["content"]) for message in answer[: len(before)]]
    is_repeated = repeated == [(message["role"], message["content"]) for message in before]
    return before + answer[len(before) :] if is_repeated else answer


def parse_turns(rest: dict[str, Any], column: str, role: str) -> Messages:
    """A column with a list of messages, one message, a transcript, or the text of one message of the given role.

    Raises:
        RowError: It holds none of these.
    """
    value = rest.pop(column, None)
    if value is None:
        return []
    if isinstance(value, str):
        value = _split_text(value) or [{"role": role, "content": value}]
    turns = [value] if isinstance(value, dict) else value
    if turns != [] and not _has_turns(turns):
        raise RowError(f"`{column}` is neither text nor messages", f"it is {describe(value)}")
    return parse_messages(turns, column)


def _has_turns(value: Any) -> bool:
    """Whether a value is a list with messages."""
    return isinstance(value, list) and any(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in value)


def _split_text(text: str) -> Messages | None:
    """The messages of a transcript, or of the JSON text of a list of messages; None if it is any other text."""
    if text.lstrip()[:2] == "[{":  # how a CSV file has a list
        with suppress(ValueError, RecursionError):
            turns = load_json(text)
            return turns if _has_turns(turns) else None
    if not TRANSCRIPT.match(text):
        return None
    _, *parts = TRANSCRIPT_TURN.split(text.strip())
    roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
    turns = [{"role": role, "content": part.strip()} for role, part in zip(roles, parts[1::2], strict=True)]
    return turns if turns[-1]["content"] else turns[:-1]


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


def _parse_chat_template_kwargs(value: Any) -> dict[str, Any]:
    """The variables for the chat template (an object or its JSON text), as in TRL."""
    value = parse_json(value or {}, "chat_template_kwargs")
    if not isinstance(value, dict):
        raise RowError("`chat_template_kwargs` is not an object", f"it is {describe(value)}")
    for name in RESERVED.intersection(value):
        raise RowError("`chat_template_kwargs` sets what is not for the template", f"it has {name!r}")
    return value


def parse_label(row: Mapping[str, Any]) -> bool | None:
    """Whether the answer of a row is labelled as good (KTO); None if it is not labelled. In CSV files it is a text."""
    labels = (str(row.get(column)).lower() for column in LABELS)
    return next((label == "true" for label in labels if label in ("true", "false")), None)


def find_rejected(rest: Mapping[str, Any]) -> list[str]:
    """The columns that hold a rejected answer."""
    return [column for column in REJECTED if has_value(rest.get(column))]


def _check_answer(last: dict[str, Any], rest: dict[str, Any], format: Format, rows: Rows) -> None:
    """Refuse a row without an answer to train on."""
    if last["role"] != "assistant":
        hint = _suggest_rename("completion", format.answer, rest)
        if rest.get("label") is not None and not hint:
            raise RowError(*LABELLED)
        raise RowError("no answer", f"the last message is {last['role']!r}, expected 'assistant'{hint}")
    if rows is not Rows.RATED and parse_label(rest) is not None and not find_rejected(rest):
        raise RowError("an answer labelled good or bad", "task kto takes a true or false `label`")
    if is_empty(last):
        raise RowError("the answer is empty")


def is_empty(message: Mapping[str, Any]) -> bool:
    """Whether an answer has neither text nor calls nor reasoning."""
    return not (message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content"))


def _suggest_columns(names: Iterable[str], rows: Rows) -> str:
    """How the columns of a row could be renamed to those of a format; empty if nothing fits."""
    names = sorted(names)
    found = {known: name for known in SIMILAR if (name := _find_similar(known, names))}
    if "prompt" in found and ("completion" in found or rows is Rows.PROMPTS):
        wanted = ["system", "prompt"] if rows is Rows.PROMPTS else ["system", "prompt", "completion"]
    else:
        wanted = ["messages"] if "messages" in found else ["text"] if rows is Rows.TEXT else []
    renamed = {found[known]: known for known in wanted if known in found}
    return f"; {_rename(renamed)}" if renamed else " (data.columns renames)"


def _suggest_rename(known: str, new: str, rest: Mapping[str, Any]) -> str:
    """How a column that nothing reads yet could be renamed; empty if none is like what is called `known` here."""
    found = _find_similar(known, [name for name, value in rest.items() if has_value(value)])
    return f"; {_rename({found: new})}" if found else ""


def _find_similar(known: str, names: Iterable[str]) -> str | None:
    """The column that is most likely what is called `known` here."""
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in SIMILAR[known] if name in by_lower), None)


def _rename(columns: Mapping[str, str]) -> str:
    pairs = ", ".join(f"{old}: {new}" for old, new in columns.items() if old != new)
    return f"perhaps --set 'data.columns={{{pairs}}}'"
