"""Calls in what a model wrote: those that each tools format, or the chat template, writes are read again."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from swiftplug.data.chat.calls import CallReader
from swiftplug.data.chat.render import ChatRenderer
from swiftplug.plugin.registry import PluginChoice, Registry

TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
    for name in ("add", "add_all", "look.up")
]
CALLS = [
    {"name": "add_all", "arguments": {"numbers": [1, 2.5], "says": 'a "quoted" {text}\n次'}},
    {"name": "add", "arguments": {}},
    {"name": "look.up", "arguments": {"deep": {"er": None}}},
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{CALL}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    '\n<tool_call>\n{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
)
XML = "<{{ call.function.name }}>{% for name in call.function.arguments %}<{{ name }}/>{% endfor %}"


def reader(folder: Path, name: str = "template", call: str = "") -> CallReader:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if call:
        tokenizer.chat_template = TEMPLATE.replace("{CALL}", call)
    bound = Registry.discover().resolve("tools", PluginChoice(name=name), "--tools").bound
    return CallReader(ChatRenderer(tokenizer, bound))


def functions(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(call["type"] == "function" for call in calls)
    return [call["function"] for call in calls]


@pytest.mark.parametrize("name", ["hermes", "glm4", "react_en", "react_zh", "toolbench"])
def test_what_a_tools_format_writes_is_read(name: str, tiny_model_dir: Path) -> None:
    calls = reader(tiny_model_dir, name)
    written = Registry.discover().resolve("tools", PluginChoice(name=name), "--tools").bound.format_calls(CALLS)
    assert functions(calls.read(f"I think so.\n{written}\nand more", TOOLS)) == CALLS
    assert calls.read("I think {so}.", TOOLS) == []
    only_add = [TOOLS[0]]
    assert functions(calls.read(written, only_add)) == [CALLS[1]]


def test_what_the_chat_template_writes_is_read(tiny_model_dir: Path) -> None:
    calls = reader(tiny_model_dir, call=QWEN)
    written = "".join(
        f'\n<tool_call>\n{{"name": "{it["name"]}", "arguments": {json.dumps(it["arguments"])}}}\n</tool_call>'
        for it in CALLS
    )
    assert functions(calls.read(f"<think>Hm.</think>{written}", TOOLS)) == CALLS
    spaced = '<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>'
    assert functions(calls.read(spaced, TOOLS)) == [{"name": "add", "arguments": {"a": 1}}]


@pytest.mark.parametrize(
    "answer",
    [
        '<tool_call>\n{"name": "add", "arguments": {"a": }}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": 3}\n</tool_call>',
        '<tool_call>\n{"name": "subtract", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "add", "argum',
        "",
    ],
)
def test_what_is_no_call_is_none(answer: str, tiny_model_dir: Path) -> None:
    assert reader(tiny_model_dir, call=QWEN).read(answer, TOOLS) == []
    good = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    assert functions(reader(tiny_model_dir, call=QWEN).read(answer + good, TOOLS))[-1:] == [CALLS[1]]


@pytest.mark.parametrize("call", [XML, ""])
def test_a_template_without_names_and_json_gives_none(call: str, tiny_model_dir: Path) -> None:
    assert reader(tiny_model_dir, call=call).read('{"name": "add", "arguments": {}}<add>', TOOLS) == []
