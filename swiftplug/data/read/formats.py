"""Convert a row of any accepted format to a conversation."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin, has_value, load_json
from swiftplug.data.read.messages import (
    FLAGS,
    Messages,
    check_media,
    check_text,
    check_turns,
    describe,
    parse_json,
    parse_messages,
)
from swiftplug.plugin import Rows

LARGEST = 3.4028234e38  # of the numbers that float32 holds, as which those of rows are stored

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
            before, messages = messages, _add_answer(messages, _parse_turns(rest, column, "assistant"))
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


def to_conversations(
    row: Any, origin: RowOrigin, rows: Rows, columns: Mapping[str, str] | None = None
) -> tuple[Conversation, ...]:
    """Convert a row of any accepted format to the conversations that a task reads of it.

    Of a preference row, `Rows.PAIRS` and `Rows.RATED` read two: with the preferred and with the rejected answer. The
    facts are `margin` for `Rows.PAIRS` (0 if the row has none), `rating` for `Rows.RATED`, for `Rows.LABELLED`
    `label`, as JSON, and `origin`, for errors about all labels, and `steps` for `Rows.STEPS`, which reads `completions`
    (or `steps`) and `labels`, and of a conversation its prompt.

    Raises:
        RowError: The row cannot be used.
    """
    conversation = to_conversation(row, origin, rows, columns)
    if rows is Rows.PAIRS:
        facts = {"margin": _parse_margin(conversation.columns)}
        return tuple(replace(each, facts=facts) for each in _split_pair(conversation))
    if rows is Rows.LABELLED:
        label = _parse_class(conversation.columns.pop("label", None))
        return (replace(conversation, facts={"label": label, "origin": str(origin)}),)
    if rows is Rows.STEPS:
        return (_with_steps(conversation),)
    return _rate(conversation) if rows is Rows.RATED else (conversation,)


def _split_pair(conversation: Conversation) -> tuple[Conversation, Conversation]:
    """The conversation with the preferred answer, and the one with the rejected answer.

    What they have in common is the prompt, and does not train.
    """
    rest, messages = conversation.columns, conversation.messages
    found = _find_rejected(rest)
    if not found and any(rest.get(column) is not None for column in REJECTED):
        raise RowError(EMPTY_REJECTED)
    if not found or conversation.text is not None:
        raise RowError(f"no rejected answer (expected `rejected_response` or `rejected`; {_task_for(conversation)})")
    if len(found) > 1:
        raise RowError("two rejected answers", f"found `{found[0]}` and `{found[1]}`")
    if parse_label(rest) is not None:
        raise RowError("an answer that is both labelled and one of a pair", f"found a label and `{found[0]}`")
    preferred = _parse_turns(rest, "chosen", "assistant")  # beside another column with an answer
    if preferred and all(preferred != messages[start:] for start in (0, 1, conversation.answer_start, -1)):
        raise RowError("two preferred answers", "`chosen` is not the answer of the other columns")
    other = _parse_turns(rest, found[0], "assistant")
    # Of a whole conversation, a single message replaces the last one, and several replace the whole last answer.
    whole = conversation.prompt_length is None and len(other) == 1
    others = _add_answer(messages[: -1 if whole else conversation.answer_start], other)
    if others and others[0]["role"] == "user" and messages[0]["role"] in SYSTEM_ROLES:
        others = [messages[0], *others]  # the row's `system` is that of both
    check_turns(others)
    common = _common_start(messages, others)
    answers = messages[common:], others[common:]
    if _is_empty(others[-1]):
        raise RowError(EMPTY_REJECTED)
    if not answers[0] or not answers[1]:
        raise RowError(SAME_ANSWERS if answers[0] == answers[1] else "one answer of a pair continues the other")
    if any(answer[0]["role"] != "assistant" for answer in answers):
        raise RowError("no common prompt", f"they differ in message {common + 1} first, expected in an assistant's")
    if answers[1][-1]["role"] != "assistant":
        raise RowError("no rejected answer", f"its last message is {answers[1][-1]['role']!r}, expected 'assistant'")
    prompt = _untrained(messages[:common])
    chosen, rejected = (replace(conversation, messages=prompt + each, prompt_length=common) for each in answers)
    return chosen, replace(rejected, columns={})


def _rate(conversation: Conversation) -> tuple[Conversation, ...]:
    """The conversation with its rating, or two, the preferred answer rated good and the rejected one bad."""
    rest, messages = conversation.columns, conversation.messages
    if _find_rejected(rest):
        good, bad = _split_pair(conversation)
        return replace(good, facts={"rating": True}), replace(bad, facts={"rating": False})
    task = _task_for(conversation)
    rating = _parse_rating(rest)
    if rating is None or conversation.text is not None:
        expected = "expected `label`: true or false, or a rejected answer"
        raise RowError(f"no answer labelled good or bad ({expected}; {task})")
    start = conversation.answer_start
    return (replace(conversation, messages=_untrained(messages[:start]) + messages[start:], facts={"rating": rating}),)


def _with_steps(conversation: Conversation) -> Conversation:
    """The prompt, with the steps of an answer and whether each is right, in the form of TRL."""
    rest, prompt = conversation.columns, conversation.messages
    columns = [column for column in STEPS if has_value(rest.get(column))]
    if conversation.text is not None or len(columns) != 1 or not has_value(rest.get("labels")):
        found = ", ".join(
            f"`{column}`" for column in [*columns, *(["labels"] if has_value(rest.get("labels")) else [])]
        )
        expected = "`completions` or `steps`, a list of texts, and `labels`, as many of true or false"
        raise RowError(f"no steps with labels (found {found or 'neither'}, expected {expected})")
    steps, labels = parse_json(rest.pop(columns[0]), columns[0]), parse_json(rest.pop("labels"), "labels")
    for name, values in ((columns[0], steps), ("labels", labels)):
        if not isinstance(values, list):
            raise RowError(f"`{name}` is not a list", f"it is {describe(values)}")
    if len(steps) != len(labels):
        raise RowError("not as many labels as steps", f"{len(steps)} steps, {len(labels)} labels")
    rated = []
    for number, (step, label) in enumerate(zip(steps, labels, strict=True), 1):
        is_right = FLAGS.get(str(label).strip().lower())
        if not isinstance(step, str):
            raise RowError("a step is not text", f"step {number} is {describe(step)}")
        if not check_text(step, f"step {number}").strip():
            raise RowError("a step is empty", f"step {number}")
        if is_right is None:
            raise RowError("the label of a step is not true or false", f"step {number} has {label!r}")
        rated.append((step, is_right))
    if prompt[-1]["role"] not in ("user", "tool"):
        raise RowError("no question before the steps", f"the last message is {prompt[-1]['role']!r}")
    return replace(conversation, facts={"steps": rated})


def with_answer_of(conversation: Conversation, other: Conversation) -> Conversation:
    """The conversation, ending in the other one's last answer."""
    answer = other.messages[other.answer_start :]
    return replace(conversation, messages=conversation.messages[: conversation.answer_start] + answer, columns={})


def _task_for(conversation: Conversation) -> str:
    """Which task takes a row."""
    if conversation.text is None and parse_label(conversation.columns) is not None:
        return "task kto takes answers labelled good or bad"
    if has_value(conversation.columns.get("label")):
        return "task seq_cls takes labels"
    return "task pt takes texts" if conversation.text is not None else "task sft takes answers alone"


def _find_rejected(rest: Mapping[str, Any]) -> list[str]:
    return [column for column in REJECTED if has_value(rest.get(column))]


def _untrained(prompt: Messages) -> Messages:
    """The messages, of which no answer trains."""
    return [{**message, "loss": False} if message["role"] == "assistant" else message for message in prompt]


def _parse_margin(rest: dict[str, Any]) -> float:
    """By how much the preferred answer is better; 0 if the row does not say."""
    margin = rest.pop("margin", None)
    if not has_value(margin):
        return 0.0
    if isinstance(margin, str):  # as in a CSV file
        with suppress(ValueError):
            margin = float(margin)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= LARGEST:
        raise RowError("`margin` is not a finite number", f"it is {margin!r:.60}; the largest is {LARGEST:.2g}")
    return float(margin)


def _parse_rating(rest: dict[str, Any]) -> bool | None:
    """Whether the answer is labelled as good, by true or false, also as 1 or 0 or as text; None without a label."""
    given = {column: rest.pop(column) for column in LABELS if has_value(rest.get(column))}
    ratings = {column: FLAGS.get(str(value).strip().lower()) for column, value in given.items()}
    for column, rating in ratings.items():
        if rating is None:
            raise RowError(f"`{column}` is not true or false", f"it is {given[column]!r}")
    if len({*ratings.values()}) > 1:
        raise RowError("an answer labelled both good and bad", f"it has {given}")
    return next(iter(ratings.values()), None)


def _parse_class(label: Any) -> str:
    """The label of a row as JSON: a class or several, by name or number, or a number; a CSV file has a list as text."""
    if isinstance(label, str) and label.lstrip()[:1] == "[":
        with suppress(ValueError, RecursionError):
            label = load_json(label)
    if label is None or (isinstance(label, str) and not label.strip()):
        raise RowError("no label (expected `label`; data.columns renames columns)")
    if isinstance(label, int | float) and not abs(label) <= LARGEST:
        raise RowError("the label is not a finite number", f"it is {label!r:.60}; the largest is {LARGEST:.2g}")
    if not isinstance(label, str | bool | int | float | list):
        raise RowError("the label is neither a class nor a number", f"it is {describe(label)}")
    if isinstance(label, list):
        if {type(each) for each in label} not in ({str}, {int}, set()):
            raise RowError("a list of labels is neither one of texts nor one of whole numbers", f"it is {label!r:.60}")
        if len({*label}) < len(label):
            raise RowError("a list of labels has one twice", f"it is {label!r:.60}; expected the classes that apply")
    return json.dumps(label, ensure_ascii=False)


def _common_start(one: Messages, other: Messages) -> int:
    """How many messages two conversations have in common at their start, whatever they say about training."""

    def read(message: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in message.items() if key not in ("loss", "loss_scale")}

    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if read(a) != read(b)), min(len(one), len(other)))


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
    prompt = _parse_turns(rest, "prompt", "user")
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
    Format({"query"}, lambda rest: _parse_history(rest) + _parse_turns(rest, "query", "user"), "response"),
    Format({"chosen", "rejected"}, lambda rest: []),
)

EMPTY_REJECTED = "the rejected answer is empty"
SAME_ANSWERS = "the two answers are the same"

REJECTED = ("rejected_response", "rejected", "rejected_messages")
"""The columns that hold the rejected answer of a preference row."""

STEPS = ("completions", "steps")
"""The columns that hold the steps of an answer."""

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


def _add_answer(before: Messages, answer: Messages) -> Messages:
    """The messages with the answer, or the answer alone if it is a conversation that does not begin with them."""
    if not answer or answer[0]["role"] == "assistant":
        return before + answer
    repeated = [(message["role"], message["content"]) for message in answer[: len(before)]]
    is_repeated = repeated == [(message["role"], message["content"]) for message in before]
    return before + answer[len(before) :] if is_repeated else answer


def _parse_turns(rest: dict[str, Any], column: str, role: str) -> Messages:
    """A column with a list of messages, one message, a transcript, or the text of one message of the given role."""
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


def _check_answer(last: dict[str, Any], rest: dict[str, Any], format: Format, rows: Rows) -> None:
    """Refuse a row without an answer to train on."""
    if last["role"] != "assistant":
        hint = _suggest_rename("completion", format.answer, rest)
        if rest.get("label") is not None and not hint:
            raise RowError(*LABELLED)
        raise RowError("no answer", f"the last message is {last['role']!r}, expected 'assistant'{hint}")
    if rows is not Rows.RATED and parse_label(rest) is not None and not _find_rejected(rest):
        raise RowError("an answer labelled good or bad", "task kto takes a true or false `label`")
    if _is_empty(last):
        raise RowError("the answer is empty")


def _is_empty(message: Mapping[str, Any]) -> bool:
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
