"""Every accepted format of rows comes to the same conversation, and what cannot be used has a reason."""

import copy
import json
import re
from typing import Any

import pytest
import yaml

from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin
from swiftplug.data.read.formats import to_conversation
from swiftplug.data.read.messages import ARGUMENT_KEYS
from swiftplug.data.read.report import UnreadKeys
from swiftplug.plugin import Rows

ORIGIN = RowOrigin("data.jsonl", 7)
USER = {"role": "user", "content": "你好 👋"}
ANSWER = {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be kind."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def converted(row: Any, rows: Rows = Rows.ANSWERS, columns: dict[str, str] | None = None) -> Conversation:
    before = copy.deepcopy(row)
    conversation = to_conversation(row, ORIGIN, rows, columns)
    assert row == before, "the row was changed"
    return conversation


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"messages": json.dumps([USER, ANSWER])},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "你好"}, {"type": "text", "text": " 👋"}]},
                ANSWER,
            ]
        },
        {"messages": [{**USER, "name": None}, {**ANSWER, "tool_calls": None}]},
        {"prompt": "你好 👋", "completion": "Hello."},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "completion": "Hello."},
        {"instruction": "你好 👋", "output": "Hello."},
        {"instruction": "你好 👋", "input": "", "output": "Hello.", "history": [], "system": ""},
        {"conversations": [{"from": "human", "value": "你好 👋"}, {"from": "gpt", "value": "Hello."}]},
        {"conversations": [USER, ANSWER]},
        {"prompt": "你好 👋", "chosen": "Hello.", "rejected": "Go away."},
        {"prompt": "你好 👋", "chosen": [USER, ANSWER], "rejected": [USER, USER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, USER]},
        {"messages": [USER, ANSWER], "rejected_response": "Go away."},
        {"messages": [USER, ANSWER], "text": "not this", "prompt": "nor this"},
        {"query": "你好 👋", "response": "Hello.", "history": None, "system": None},
        {"query": [USER], "response": [ANSWER]},
        {"prompt": [USER], "completion": ANSWER},
        {"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER]), "history": "[]"},
        {"prompt": [USER], "completion": [USER, ANSWER]},
        {"prompt": "你好 👋", "completion": None, "chosen": "Hello.", "rejected": "Go away."},
        {"instruction": "你好 👋", "chosen": "Hello.", "rejected": "Go away."},
        {"messages": [USER], "chosen": ANSWER, "rejected": {**ANSWER, "content": "Go away."}},
        {
            "conversations": [{"from": "human", "value": "你好 👋"}],
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "Go away."},
        },
        {"messages": [{"role": "human", "content": "你好 👋"}, {"role": "gpt", "content": "Hello."}]},
        {"messages": [{"role": "User", "content": "你好 👋"}, {"role": "model", "content": "Hello."}]},
        {"messages": [{"human": "你好 👋", "assistant": "Hello."}]},
        {"conversations": [{"input": "你好 👋", "output": "Hello."}]},
        {"chosen": "\n\nHuman: 你好 👋\n\nAssistant: Hello.", "rejected": "\n\nHuman: 你好 👋\n\nAssistant: Go away."},
        {"prompt": "\n\nHuman: 你好 👋\n\nAssistant:", "chosen": "Hello.", "rejected": "Go away."},
        {"messages": [USER, ANSWER], "images": [], "image": None, "videos": [None], "audio": ""},
    ],
)
def test_all_formats_of_one_conversation(row: dict[str, Any]) -> None:
    assert converted(row).messages == [USER, ANSWER]


def test_instruction_and_input_history_and_system() -> None:
    row = {
        "instruction": "Translate.",
        "input": "good day",
        "output": "Guten Tag",
        "history": [["Hi", "Ja?"]],
        "system": "You translate.",
    }
    assert [(m["role"], m["content"]) for m in converted(row).messages] == [
        ("system", "You translate."),
        ("user", "Hi"),
        ("assistant", "Ja?"),
        ("user", "Translate.\ngood day"),
        ("assistant", "Guten Tag"),
    ]


def test_a_transcript_is_a_conversation() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Human: is a word\nof two lines\n\nHuman: Bye\n\nAssistant: Bye."
    assert [(m["role"], m["content"]) for m in converted({"chosen": text, "rejected": text}).messages] == [
        ("user", "Hi"),
        ("assistant", "Human: is a word\nof two lines"),
        ("user", "Bye"),
        ("assistant", "Bye."),
    ]
    assert converted({"prompt": "Human: a word", "completion": "Hello."}).messages[0]["content"] == "Human: a word"


@pytest.mark.parametrize("completion", ["Hello.", [ANSWER], [USER, {**ANSWER, "content": "Hi."}, USER, ANSWER]])
@pytest.mark.parametrize("column", ["completion", "chosen"])
def test_of_prompt_and_completion_only_the_completion_trains(column: str, completion: Any) -> None:
    prompt = [USER, {**ANSWER, "content": "Hi."}, USER]
    messages = converted({"prompt": prompt, column: completion}).messages
    assert [message.get("loss") for message in messages] == [None, False, None, None]
    own = [USER, {**ANSWER, "loss": True}, USER]
    assert converted({"prompt": own, column: "Hello."}).messages[1]["loss"] is True


@pytest.mark.parametrize(
    "question",
    [{"prompt": [{"role": "system", "content": "Be kind."}, USER]}, {"instruction": "Hi!"}, {"query": "Hi!"}],
)
def test_a_question_that_the_answers_conversation_does_not_begin_with_is_left_in_the_row(
    question: dict[str, Any],
) -> None:
    conversation = converted({**question, "chosen": [USER, ANSWER]})
    assert conversation.messages == converted({"messages": [USER, ANSWER]}).messages
    assert conversation.columns == question


@pytest.mark.parametrize(
    ("row", "suggestion"),
    [
        ({"question": "q", "answer": "a"}, "--set 'data.columns={question: prompt, answer: completion}'"),
        ({"Question": "q", "Response": "a", "id": 1}, "{Question: prompt, Response: completion}"),
        (
            {"system_prompt": "s", "question": "q", "response": "a"},
            "{system_prompt: system, question: prompt, response: completion}",
        ),
        ({"conversation": [USER, ANSWER]}, "{conversation: messages}"),
        ({"prompt": "q", "response": "a"}, "{response: completion}"),
        ({"instruction": "q", "context": "", "response": "a"}, "{response: output}"),
        ({"query": "q", "answer": "a"}, "{answer: response}"),
        ({"query": "q", "answers": "[]", "tools": "[]"}, "{answers: response}"),
        ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, "{question: prompt}"),
        ({"prompt": "q", "completion": None, "answer": None, "response": "a", "label": 1}, "{response: completion}"),
    ],
)
def test_a_mapping_of_columns_is_suggested(row: dict[str, Any], suggestion: str) -> None:
    with pytest.raises(RowError) as caught:
        converted(row)
    assert suggestion in caught.value.detail
    columns = yaml.safe_load(re.findall(r"\{.*\}", caught.value.detail)[0])
    assert converted(row, columns=columns).messages[-1]["role"] == "assistant"


def test_system_column_yields_to_a_system_message() -> None:
    both = converted({"messages": [SYSTEM, USER, ANSWER], "system": "other"})
    assert both.messages[0] == SYSTEM
    assert both.columns == {"system": "other"}  # so it is counted as not read
    assert converted({"messages": [SYSTEM, USER, ANSWER], "system": SYSTEM["content"]}).columns == {}
    assert converted({"messages": [USER, ANSWER], "system": "Be kind."}).messages[0] == SYSTEM


def test_sharegpt_tools() -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "你好 👋"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "Hello."},
        ],
        "tools": '[{"name": "add", "parameters": {"default": null}}]',
    }
    conversation = converted(row)
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert conversation.messages == [SYSTEM, USER, called, {"role": "tool", "content": "3"}, ANSWER]
    assert conversation.tools == [{"name": "add", "parameters": {"default": None}}]


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        json.dumps([CALL]),
        [{"name": "add", "arguments": {"a": 1}}],
        [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
    ],
)
def test_tool_calls_take_one_form(calls: Any) -> None:
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "1"},
        ANSWER,
    ]
    assert converted({"messages": messages}).messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_tool_call_whose_arguments_are_no_object_keeps_its_text() -> None:
    call = {"id": "c1", "function": {"name": "run", "arguments": "print(1)"}}
    message = converted({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}).messages[1]
    expected = {"type": "function", "id": "c1", "function": {"name": "run", "arguments": "print(1)"}}
    assert message["tool_calls"] == [expected]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_calls_as_turns_of_their_own(column: str) -> None:
    role, content = ("role", "content") if column == "messages" else ("from", "value")
    call = json.dumps(CALL["function"])
    turns = [
        ("user", "你好 👋"),
        ("assistant", "Let me add."),
        ("tool_call", call),
        ("tool_call", f"[{call}, {call}]"),
        ("tool_response", "1"),
        ("tool_response", "1"),
        ("function_call", call),
        ("observation", "1"),
        ("assistant", "Hello."),
    ]
    messages = converted({column: [{role: name, content: value} for name, value in turns]}).messages
    result = {"role": "tool", "content": "1"}
    text_and_calls = {"role": "assistant", "content": "Let me add.", "tool_calls": [CALL, CALL, CALL]}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert messages == [USER, text_and_calls, result, result, called, result, ANSWER]


ADD = {"a": 1}
PART = {"type": "tool_use", "id": "c1", "name": "add", "input": ADD}


@pytest.mark.parametrize(
    "called",
    [
        {"function_call": {"name": "add", "arguments": '{"a": 1}'}},
        {"function_call": '{"name": "add", "arguments": {"a": 1}}', "tool_calls": []},
        {"function_call": CALL["function"], "tool_calls": [CALL]},
        {"content": [PART | {"id": None}]},
        {"content": [{"functionCall": {"name": "add", "args": ADD}}]},
        {"content": [{"type": "function_call", "name": "add", "arguments": '{"a": 1}'}]},
        *({"tool_calls": [{"name": "add", key: value}]} for key in ARGUMENT_KEYS for value in (ADD, '{"a": 1}')),
        {"tool_calls": [{"type": "function", "function": json.dumps({"name": "add", "parameters": ADD})}]},
        {"tool_calls": [{"name": "add", "arguments": json.dumps(json.dumps(ADD)), "input": None}]},
        {"tool_calls": {"name": "add", "args": ADD, "type": "tool_call"}},
        {"tool_calls": [{"function": "add", "arguments": ADD}]},
    ],
)
def test_a_call_under_whatever_key_its_provider_puts_it(called: dict[str, Any]) -> None:
    message = converted({"messages": [USER, {"role": "assistant", "content": None, **called}]}).messages[1]
    assert message == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_a_call_without_parameters_and_the_ids_of_calls() -> None:
    calls = [{"id": "c1", "name": "now", "arguments": ""}, {"call_id": "c2", "name": "now", "input": {}}]
    message = converted({"messages": [USER, {"role": "assistant", "tool_calls": calls}]}).messages[1]
    now = {"name": "now", "arguments": {}}
    assert message["tool_calls"] == [{"type": "function", "id": each, "function": now} for each in ("c1", "c2")]


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"argumnts": ADD}, {"args": ADD, "kwargs": {"a": 2}}])
def test_a_call_whose_arguments_cannot_be_found_is_left_out(arguments: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=r"a tool call has (no arguments|arguments twice)"):
        converted({"messages": [USER, {**ANSWER, "tool_calls": [{"name": "add", **arguments}]}]})


def test_a_refusal_is_the_answer_and_no_calls_are_none() -> None:
    for answer in (
        {"role": "assistant", "content": None, "refusal": "Hello."},
        {**ANSWER, "tool_calls": "[]"},
        {**ANSWER, "tool_calls": "null", "function_call": None},
    ):
        assert converted({"messages": [USER, answer]}).messages[1] == ANSWER


def test_text_that_looks_like_a_call_is_text() -> None:
    text = json.dumps(CALL)
    assert converted({"messages": [USER, {"role": "assistant", "content": text}]}).messages[1]["content"] == text


def test_thinking_before_a_call_that_is_a_turn_of_its_own() -> None:
    value = '<think>\nhm\n</think>\n\n{"name": "add", "arguments": {"a": 1}}'
    message = converted({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]})
    assert message.messages[1] == {"role": "assistant", "content": "<think>\nhm\n</think>", "tool_calls": [CALL]}


def test_older_functions_and_their_results() -> None:
    function = {"name": "add", "parameters": {"type": "object"}}
    call = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    result = {"role": "function", "name": "add", "content": "1"}
    read = converted({"messages": [USER, call, result, ANSWER], "functions": json.dumps([function])})
    assert read.messages[2] == {"role": "tool", "name": "add", "content": "1"}
    assert read.tools == [{"type": "function", "function": function}]
    assert read.columns == {}


def test_the_parts_of_anthropic_messages() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "1"}]}
    messages = [
        USER,
        {"role": "assistant", "content": [thought, {"type": "text", "text": "Let me"}, " see.", PART]},
        {"role": "user", "content": [result, {**result, "tool_use_id": "c2"}]},
        ANSWER,
    ]
    called, *results, _ = converted({"messages": messages}).messages[1:]
    assert (called["reasoning_content"], called["content"]) == ("hm", "Let me see.")
    assert called["tool_calls"] == [{**CALL, "id": "c1"}]
    assert results == [{"role": "tool", "content": "1", "tool_call_id": each} for each in ("c1", "c2")]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_meaning_under_all_its_keys(key: str) -> None:
    for answer in (
        {**ANSWER, key: "hm"},
        {**ANSWER, key: "hm", "reasoning": "hm"},
        {**ANSWER, "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "Hello."], key: ""},
    ):
        assert converted({"messages": [USER, answer]}).messages[1] == {**ANSWER, "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"weight": 1}, None),
        ({"loss": 0}, False),
        ({"loss": "true"}, True),
        ({"train": False}, False),
        ({"training": "False", "train_on_turn": 0}, False),
        ({"loss": False, "weight": 0}, False),
    ],
)
def test_whether_a_message_trains_under_all_its_keys(given: dict[str, Any], loss: bool | None) -> None:
    expected = ANSWER if loss is None else {**ANSWER, "loss": loss}
    assert converted({"messages": [USER, {**ANSWER, **given}]}).messages[1] == expected


@pytest.mark.parametrize("value", [{"think": False}, '{"think": false}'])
def test_variables_of_the_template(value: Any) -> None:
    read = converted({"messages": [USER, ANSWER], "chat_template_kwargs": value})
    assert (read.chat_template_kwargs, read.columns) == ({"think": False}, {})
    for nothing in (None, "", {}):
        assert converted({"messages": [USER, ANSWER], "chat_template_kwargs": nothing}).chat_template_kwargs == {}


def test_what_messages_carry_is_kept() -> None:
    answer = {**ANSWER, "reasoning_content": "hm", "loss": False, "loss_scale": 0.5}
    assert converted({"messages": [USER, answer]}).messages[1] == answer


def test_other_columns_pass_through() -> None:
    row = {"messages": [USER, ANSWER], "id": 3, "solution": "x", "tools": ["search"], "rejected_response": "no"}
    conversation = converted(row)
    assert conversation.columns == {"id": 3, "solution": "x", "rejected_response": "no"}
    assert conversation.tools == ["search"]
    assert conversation.origin == ORIGIN


def test_a_renamed_column_without_a_value_takes_no_other_ones_place() -> None:
    columns = {"question": "prompt", "q": "prompt", "answer": "completion"}
    own = {"prompt": "你好 👋", "completion": "Hello."}
    assert converted({**own, "question": None, "answer": ""}, columns=columns).messages == [USER, ANSWER]
    assert converted({**own, "prompt": None, "question": "你好 👋", "q": ""}, columns=columns).messages == [
        USER,
        ANSWER,
    ]
    swapped = {"prompt": "completion", "completion": "prompt"}
    assert converted({"prompt": "Hello.", "completion": "你好 👋"}, columns=swapped).messages == [USER, ANSWER]


def test_columns_are_renamed() -> None:
    row = {"question": "你好 👋", "answer": "Hello.", "prompt": "other"}
    assert converted(row, columns={"question": "prompt", "answer": "completion"}).messages == [USER, ANSWER]


def test_text_rows() -> None:
    assert converted({"text": "長い話"}, rows=Rows.TEXT).text == "長い話"
    assert converted({"text": "長い話", "label": 1}, rows=Rows.TEXT).messages == []
    assert converted({"text": "長い話"}, rows=Rows.ANSWERS).text == "長い話"
    assert converted({"messages": [USER, ANSWER], "text": "長い話"}, rows=Rows.TEXT).text == "長い話"


def test_pt_needs_no_answer() -> None:
    assert converted({"messages": [SYSTEM, USER]}, rows=Rows.TEXT).messages == [SYSTEM, USER]


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ([1, 2], "a row is not an object", "a list: [1, 2]"),
        ({"prompt": None, "completion": "a"}, "no known columns", "'prompt' (null), 'completion'"),
        ({"chosen": "The sky is blue.", "rejected": "It is green."}, "no question", "only an answer"),
        ({"instruction": "", "output": "a"}, "no question", "only an answer"),
        ({"prompt": [USER, ANSWER], "completion": "So."}, "roles out of order", "message 3 is 'assistant'"),
        ({"prompt": "2 + 2?", "completion": 4}, "`completion` is neither text nor messages", "a number"),
        ({"prompt": "q", "completion": ["a", "b"]}, "`completion` is neither text nor messages", "a list"),
        ({"prompt": {"0": "q"}, "completion": {"0": "a"}}, "`prompt` is neither text nor messages", "an object"),
        ({"messages": [USER, {**ANSWER, "content": [{"x": 1}]}]}, "not text: 'an object'", "message 2"),
        ({"messages": '[{"role": "user", "role": "user"}]'}, "not JSON", "the key 'role' is there twice"),
        (
            {"messages": [USER, {"role": "tool_call", "content": '{"name": "f", "args": "{\\"a\\": 1, \\"a\\": 2}"}'}]},
            "not JSON",
            "'a'",
        ),
        ({"question": "q"}, "no known columns", "'question'"),
        ({}, "no known columns", "none"),
        ({"messages": "not json"}, "`messages` is text that is not JSON", ""),
        ({"messages": {"role": "user"}}, "`messages` is not a list of messages", "an object"),
        ({"messages": []}, "no messages", ""),
        ({"messages": ["hi"]}, "a message is not an object", "message 1 is text"),
        ({"messages": [{"role": "asistant", "content": ""}]}, "unknown role", "did you mean 'assistant'?"),
        ({"messages": [{"role": ["user"], "content": ""}]}, "unknown role", "['user']"),
        ({"messages": [{"role": "user", "content": 3}, ANSWER]}, "a content is not text", "message 1 is a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "not text", "'image_url'"),
        (
            {"messages": [{"role": "user", "content": "\ud83d"}, ANSWER]},
            "unpaired surrogate",
            "message 1 has '\\ud83d'",
        ),
        ({"messages": [USER, ANSWER], "tools": '[{"name": "\\ud83d"}]'}, "unpaired surrogate", "the row has '\\ud83d'"),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "\ud83d", "args": {}}]}]},
            "unpaired surrogate",
            "the row",
        ),
        ({"messages": [USER, ANSWER], "ke\ud83dy": 1}, "unpaired surrogate", "the row"),
        ({"text": "fine", "ke\ud83dy": 1}, "unpaired surrogate", "the row"),
        ({"messages": [USER]}, "no answer", "'user'"),
        ({"prompt": "q"}, "no answer", "'user'"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "the answer is empty", ""),
        (
            {"messages": [USER, USER, ANSWER]},
            "roles out of order",
            "message 2 is 'user' after 'user', expected 'assistant'",
        ),
        ({"messages": [ANSWER]}, "roles out of order", "first"),
        ({"messages": [USER, SYSTEM, ANSWER]}, "roles out of order", "message 2 is 'system'"),
        ({"messages": [SYSTEM, ANSWER]}, "roles out of order", "expected 'user'"),
        ({"messages": [USER, {"role": "tool", "content": "x"}, ANSWER]}, "roles out of order", "'tool' after 'user'"),
        ({"messages": [USER, {**ANSWER, "loss": 2}]}, "`loss` is not true or false", "message 2 has 2"),
        ({"messages": [USER, {**ANSWER, "loss_scale": True}]}, "`loss_scale` is not a finite number", "True"),
        ({"messages": [USER, {**ANSWER, "loss_scale": float("nan")}]}, "`loss_scale` is not a finite number", "nan"),
        ({"messages": [USER, {**ANSWER, "reasoning_content": 3}]}, "`reasoning_content` is not text", "a number"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"x": 1}]}]}, "a tool call has no name", "message 2"),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": [1]}]}]},
            "neither an object nor",
            "a list",
        ),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": '{"a'}]}]}, "not JSON", "message 2"),
        ({"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]}, "not the assistant's", "'user'"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [CALL], "function_call": {"name": "f", "args": {}}}]}, "two", ""),
        ({"messages": [USER, {**ANSWER, "reasoning": "a", "thinking": "b"}]}, "reasoning in two places", "`thinking`"),
        ({"messages": [USER, {**ANSWER, "content": [{"type": "redacted_thinking"}]}]}, "'redacted_thinking'", "2"),
        ({"messages": [USER, {**ANSWER, "content": [PART, "so"]}]}, "text behind a call", "message 2"),
        ({"messages": [USER, {**ANSWER, "train_detail": [{"train": False}]}]}, "`train_detail` is not read", "2"),
        ({"messages": [USER, ANSWER, {"role": "tool_call", "content": ""}, ANSWER]}, "a turn for a call has none", "3"),
        ({"messages": [USER, {"role": "tool_call", "content": "[]"}, ANSWER]}, "a turn for a call has none", "2"),
        ({"messages": [USER, {**ANSWER, "tool_calls": "[" * 99999}]}, "`tool_calls` is text that is not JSON", ""),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "refusal": {}}]},
            "a content is not text",
            "object",
        ),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "`weight` is not 0 or 1", "message 2 has 0.5"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "`weight` is not for a message of this role", "'user'"),
        ({"messages": [USER, {**ANSWER, "loss": True, "weight": 0}]}, "given in two ways", "'weight': 0"),
        ({"messages": [USER, {**ANSWER, "loss_scale": -1}]}, "`loss_scale` is not a finite number of at", "-1"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": "no"}, "`chat_template_kwargs` is text that is not", ""),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": [1]}, "`chat_template_kwargs` is not an object", "list"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": {"tokenize": True}}, "not for the", "'tokenize'"),
        ({"messages": [USER, ANSWER], "tools": ["f"], "functions": [{"name": "f"}]}, "`tools` and `functions`", ""),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "add"}]},
            "not JSON",
            "",
        ),
        ({"messages": [USER, ANSWER], "tools": "[1"}, "`tools` is text that is not JSON", ""),
        ({"messages": [USER, ANSWER], "tools": {"a": 1}}, "`tools` is not a list", "an object"),
        ({"messages": [USER, ANSWER], "tools": [1]}, "neither text nor an object", "a number"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "unknown role", "'bot'"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "unknown role", "['gpt']"),
        ({"instruction": 5, "output": "x"}, "`instruction` or `input` is not text", "a number"),
        ({"instruction": "a", "output": "x", "history": ["q"]}, "`history` is not a list of pairs", '"q"'),
        ({"text": 5}, "`text` is not text", "a number"),
        ({"text": "  "}, "the text is empty", ""),
        ({"messages": [USER], "label": 1}, "a label in place of an answer", "task seq_cls"),
        ({"text": "fine film", "label": 1}, "a label in place of an answer", "task seq_cls"),
        ({"prompt": "q", "completion": "a", "label": False}, "an answer labelled good or bad", "task kto"),
        ({"prompt": "q", "completion": "a", "label": "False"}, "an answer labelled good or bad", "task kto"),
        ({"messages": [USER, ANSWER], "kto_tag": False}, "an answer labelled good or bad", "task kto"),
        ({"messages": [USER, ANSWER], "system": ["Be kind."]}, "`system` is not text", "a list"),
        ({"messages": [USER, ANSWER], "images": ["cat.jpg"]}, "images, audio or video", "`images`"),
        ({"messages": [USER, ANSWER], "image": {"bytes": b"x", "path": None}}, "images, audio or video", "`image`"),
        ({"messages": [{**USER, "images": ["aGk="]}, ANSWER]}, "images, audio or video", "message 1 has `images`"),
        ({"text": "a cat", "video": "cat.mp4"}, "images, audio or video", "`video`"),
        ({"prompt": "<image>\nWhat?", "completion": "a"}, "images, audio or video", "'<image>'"),
        ({"query": "What?\n<audio> ", "response": "a"}, "images, audio or video", "'<audio>'"),
        ({"text": "See <|vision_start|><|image_pad|><|vision_end|>"}, "images, audio or video", "'<|vision_start|>'"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        converted(row)
    assert reason in caught.value.reason
    assert detail in caught.value.detail


def test_unread_keys_in_one_line() -> None:
    unread, more = UnreadKeys(), UnreadKeys()
    for _ in range(12):
        unread.count_row({"foo": False, "empty": "", "null": None, "nothing": [[], {}]})
    more.count_row({"sytem": "Be kind.", "foo": 1, "messages": "beside a text"})
    more.count_message({"bar": 0})
    unread.add(more)
    assert unread.lines() == [
        "13 rows have `foo`, 1 row has `messages`, `sytem` (did you mean `system`?), 1 message has `bar`: not read"
    ]
    more.count_row({"rejected": "no"})
    assert more.lines()[0].endswith(": not read (of preferences, only the preferred answer is used)")
    many = UnreadKeys()
    many.count_row({f"key {number:02}": 1 for number in range(30)})
    assert many.lines()[0].endswith("`key 19`, 10 other keys: not read")
    assert UnreadKeys().lines() == []


@pytest.mark.parametrize("text", ['[{"a": 1}]', '[{"role": "user"', "[{] Human: hi", "{}"])
def test_a_text_that_only_looks_like_messages_is_text(text: str) -> None:
    assert converted({"prompt": text, "completion": "Hello."}).messages == [{"role": "user", "content": text}, ANSWER]
