"""Read of a row what its task needs: a conversation or two, and a margin, a rating, a label or steps."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin, has_value, load_json
from swiftplug.data.read.formats import (
    LABELS,
    REJECTED,
    SYSTEM_ROLES,
    add_answer,
    find_rejected,
    is_empty,
    parse_label,
    parse_turns,
    to_conversation,
)
from swiftplug.data.read.messages import FLAGS, Messages, check_text, check_turns, describe, parse_json
from swiftplug.plugin import Rows

LARGEST = 3.4028234e38  # of the numbers that float32 holds, as which those of rows are stored

EMPTY_REJECTED = "the rejected answer is empty"
SAME_ANSWERS = "the two answers are the same"

STEPS = ("completions", "steps")
"""The columns that hold the steps of an answer."""


def to_conversations(
    row: Any, origin: RowOrigin, rows: Rows, columns: Mapping[str, str] | None = None
) -> tuple[Conversation, ...]:
    """Convert a row of any accepted format to the conversations that a task reads of it.

    Of a preference row, `Rows.PAIRS` and `Rows.RATED` read two: with the preferred and with the rejected answer. The
    facts are `margin` for `Rows.PAIRS` (0 if the row has none), `rating` for `Rows.RATED`, for `Rows.LABELLED`
    `label`, as JSON, and `origin`, for errors about all labels, and `steps` for `Rows.STEPS`, which reads `completions`
    (or `steps`) and `labels`, and of a conversation its prompt. `Rows.PROMPTS` reads no last answer.

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
    if rows is Rows.PROMPTS:
        return (question_of(conversation),)
    return _rate(conversation) if rows is Rows.RATED else (conversation,)


def question_of(conversation: Conversation) -> Conversation:
    """The conversation without its last answer; raises a RowError unless it then ends in a question."""
    messages = conversation.messages
    messages = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        is_plain = conversation.text is not None
        raise RowError("no question", "a row of plain text" if is_plain else "a row without a user's message")
    if not messages[-1]["content"].strip() and messages[-1]["role"] == "user":
        raise RowError("the question is empty")
    return replace(conversation, messages=messages)


def _split_pair(conversation: Conversation) -> tuple[Conversation, Conversation]:
    """The conversation with the preferred answer, and the one with the rejected answer.

    What they have in common is the prompt, and does not train.
    """
    rest, messages = conversation.columns, conversation.messages
    found = find_rejected(rest)
    if not found and any(rest.get(column) is not None for column in REJECTED):
        raise RowError(EMPTY_REJECTED)
    if not found or conversation.text is not None:
        raise RowError(f"no rejected answer (expected `rejected_response` or `rejected`; {_task_for(conversation)})")
    if len(found) > 1:
        raise RowError("two rejected answers", f"found `{found[0]}` and `{found[1]}`")
    if parse_label(rest) is not None:
        raise RowError("an answer that is both labelled and one of a pair", f"found a label and `{found[0]}`")
    preferred = parse_turns(rest, "chosen", "assistant")  # beside another column with an answer
    if preferred and all(preferred != messages[start:] for start in (0, 1, conversation.answer_start, -1)):
        raise RowError("two preferred answers", "`chosen` is not the answer of the other columns")
    other = parse_turns(rest, found[0], "assistant")
    # Of a whole conversation, a single message replaces the last one, and several replace the whole last answer.
    whole = conversation.prompt_length is None and len(other) == 1
    others = add_answer(messages[: -1 if whole else conversation.answer_start], other)
    if others and others[0]["role"] == "user" and messages[0]["role"] in SYSTEM_ROLES:
        others = [messages[0], *others]  # the row's `system` is that of both
    check_turns(others)
    common = _common_start(messages, others)
    answers = messages[common:], others[common:]
    if is_empty(others[-1]):
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
    if find_rejected(rest):
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
    found = [column for column in (*STEPS, "labels") if has_value(rest.get(column))]
    if conversation.text is not None or len(found) != 2 or found[1] != "labels":
        shown = ", ".join(f"`{column}`" for column in found) or "neither"
        expected = "`completions` or `steps`, a list of texts, and `labels`, as many of true or false"
        raise RowError(f"no steps with labels (found {shown}, expected {expected})")
    steps, labels = (parse_json(rest.pop(column), column) for column in found)
    for name, values in zip(found, (steps, labels), strict=True):
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
