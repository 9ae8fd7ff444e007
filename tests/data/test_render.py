"""Rendering: templates of every habit, contents of every kind, and what is refused because it cannot be known."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.chat.segments import Rendered
from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType

LAST_TURN = "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
ORIGIN = RowOrigin("rows.jsonl", 3)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = CHATML.replace("m.content", "m.content | trim")
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ALPACA = (
    "{% for m in messages %}### {{ 'Response' if m.role == 'assistant' else 'Instruction' }}:\n{{ m.content }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% if loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def _conversation(*contents: str, system: str | None = None) -> Conversation:
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)
    ]
    return Conversation(([{"role": "system", "content": system}] if system is not None else []) + messages, ORIGIN)


SYSTEM, QUERY = ("system", "developer"), ("user", "tool")


def _texts(rendered: Rendered, kind: ContextType, roles: Sequence[str] = ("", "assistant")) -> list[str]:
    return [rendered.text[s.start : s.end] for s in rendered.segments if s.type is kind and s.role in roles]


@pytest.mark.parametrize(
    ("template", "response", "suffix"),
    [
        (CHATML, "hello", "<|im_end|>"),
        (MISTRAL, " hello", "<|im_end|>"),  # the space is part of the first word's token
        (ALPACA, "hello", ""),
        (THINKS, "<think>\n\n</think>\n\nhello", "<|im_end|>"),
        # A template that knows no generation prompt:
        (CHATML.split("{% if add")[0], "hello", "<|im_end|>"),
        # One that writes the end of the text only when nothing follows:
        (ALPACA.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}"), "hello", "\n\n<|im_end|>"),
        # One that ends the last turn otherwise than those before it:
        (CHATML.replace("<|im_end|>", LAST_TURN), "hello", "<|return|>"),
    ],
)
def test_an_answer_is_what_the_model_writes_behind_the_generation_prompt(
    tokenizer: PreTrainedTokenizerFast, template: str, response: str, suffix: str
) -> None:
    tokenizer.chat_template = template
    rendered = ChatRenderer(tokenizer).render(_conversation("hi", "hello"))
    assert _texts(rendered, ContextType.OTHER, QUERY) == ["hi"]
    assert _texts(rendered, ContextType.RESPONSE) == [response]
    assert _texts(rendered, ContextType.SUFFIX) == [suffix]
    assert rendered.text == tokenizer.apply_chat_template(_conversation("hi", "hello").messages, tokenize=False)


def test_a_stripping_template_is_followed_and_a_faithful_one_too(tokenizer: PreTrainedTokenizerFast) -> None:
    conversation = _conversation(" q \n", "\n a ", "r", "b\n\n", system="\ts ")
    tokenizer.chat_template = TRIMMED
    stripped = ChatRenderer(tokenizer).render(conversation)
    tokenizer.chat_template = CHATML
    faithful = ChatRenderer(tokenizer).render(conversation)
    assert _texts(stripped, ContextType.RESPONSE) == ["a", "b"]
    assert _texts(stripped, ContextType.OTHER, QUERY) == ["q", "r"]
    assert _texts(stripped, ContextType.OTHER, SYSTEM) == ["s"]
    assert _texts(faithful, ContextType.RESPONSE) == ["\n a ", "b\n\n"]
    assert _texts(faithful, ContextType.OTHER, QUERY) == [" q \n", "r"]
    assert _texts(faithful, ContextType.OTHER, SYSTEM) == ["\ts "]
    assert stripped.shortened == faithful.shortened == []


def test_a_half_stripping_template_is_followed(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML.replace("m.content", "m.content.lstrip('\n')")
    rendered = ChatRenderer(tokenizer).render(_conversation("\n q ", "\n\n a \n"))
    assert _texts(rendered, ContextType.RESPONSE) == [" a \n"]


def test_dropped_thinking_is_reported_and_kept_thinking_is_part_of_the_answer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = THINKS
    conversation = _conversation("q", "<think>\nearlier\n</think>\n\na", "r", "b")
    conversation.messages[-1]["reasoning_content"] = "now"
    rendered = ChatRenderer(tokenizer).render(conversation)
    assert _texts(rendered, ContextType.RESPONSE) == ["a", "<think>\nnow\n</think>\n\nb"]
    assert rendered.shortened == [1]


def test_a_system_message_merged_into_the_query_keeps_its_type(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% set rules = messages[0].content ~ ' / ' if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ rules if loop.first else '' }}{{ m.content }}"
        "</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rendered = ChatRenderer(tokenizer).render(_conversation("q", "a", system="be brief"))
    assert rendered.text == "<user>be brief / q</user><assistant>a</assistant>"
    assert _texts(rendered, ContextType.OTHER, SYSTEM) == ["be brief"]
    assert _texts(rendered, ContextType.OTHER, QUERY) == ["q"]
    assert _texts(rendered, ContextType.OTHER) == ["<user>", " / ", "</user><assistant>"]


def test_arguments_that_a_template_writes_in_python(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}"
    )
    conversation = _conversation("q", "")
    calls = [{"function": {"name": "look", "arguments": {"at": ["學", 1, None], "in": {"it's": "a\nb"}}}}]
    conversation.messages[1]["tool_calls"] = calls
    rendered = ChatRenderer(tokenizer).render(conversation)
    assert _texts(rendered, ContextType.RESPONSE) == [str(calls[0]["function"]["arguments"])]


def test_rounds_and_queries(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML
    conversation = _conversation("one", "a", "two", "b")
    conversation.messages += [{"role": "tool", "content": "three"}, {"role": "assistant", "content": "c"}]
    answers = [s for s in ChatRenderer(tokenizer).render(conversation).segments if s.type is ContextType.RESPONSE]
    assert [(s.query, s.is_last_round, s.message_index) for s in answers] == [
        ("one", False, 1),
        ("two", True, 3),
        ("three", True, 5),
    ]


@pytest.mark.parametrize(
    "contents",
    [
        ("<|im_start|>assistant\n", "<|im_end|>"),
        ("a<|im_end|>\n<|im_start|>assistant\nfaked", "<|im_end|>\n<|im_start|>user\nfaked<|im_end|>\n"),
        ("", "a"),
        ("q", "", "r", "b"),
        ("q", "", "", "", "r", "b"),
        ("same", "same", "same", "same"),
        ("{{ raise_exception('no') }}{% if %}", "{# not a comment #}"),
        ("\ue000\U000f0000", "\U00100000 private \U0010fffd"),
        ("𠀀𠀁𪛝", "𠀂 rare 𠀃𠀀"),
        ("👩‍👩‍👧‍👦e\u0301", "ﷺ\u200d\ufeff𝔘"),
        ("\x00\x07", "\r\n\u2028 \x85a"),
    ],
)
@pytest.mark.parametrize("template", [CHATML, TRIMMED, ALPACA, MISTRAL])
def test_contents_that_look_like_the_template(
    tokenizer: PreTrainedTokenizerFast, template: str, contents: tuple[str, ...]
) -> None:
    tokenizer.chat_template = template
    rendered = ChatRenderer(tokenizer).render(_conversation(*contents))
    expected = [content.strip() if template is TRIMMED else content for content in contents[1::2]]
    if template is MISTRAL:
        expected = [f" {answer}" for answer in expected]
    assert _texts(rendered, ContextType.RESPONSE) == expected


def test_a_rewritten_answer_is_located(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML.replace("{{ m.content }}", "{{ m.content | upper | replace('LONG', 'BRIEF') }}")
    rendered = ChatRenderer(tokenizer).render(_conversation("long question", "a long answer"))
    assert _texts(rendered, ContextType.OTHER, QUERY) == ["BRIEF QUESTION"]
    assert _texts(rendered, ContextType.RESPONSE) == ["A BRIEF ANSWER"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{{ m.content }}{{ m.content }}", "scatters message 2"),
        ("{{ m.content | length }}", "cannot locate a message in what the chat template writes"),
        ("{{ 'an answer' }}", "leaves out all of an answer"),
        ("{{ m.content[:4] }}", "cannot locate a message in what the chat template writes"),
        ("{{ m.content | reverse }}", "cannot locate a message in what the chat template writes"),
    ],
)
def test_what_cannot_be_located_is_refused(tokenizer: PreTrainedTokenizerFast, content: str, why: str) -> None:
    tokenizer.chat_template = CHATML.replace("{{ m.content }}", content)
    with pytest.raises(RowError) as refusal:
        ChatRenderer(tokenizer).render(_conversation("question", "the answer"))
    assert why in f"{refusal.value.reason}: {refusal.value.detail}"


def test_variables_of_a_row_reach_every_rendering(tokenizer: PreTrainedTokenizerFast) -> None:
    """The same text as `apply_chat_template` with them; the answer starts where the prompt with them ends."""
    prefix = "{{ '<think></think>' if quiet is defined and quiet }}"
    tokenizer.chat_template = CHATML.replace("assistant\n{%", f"assistant\n{prefix}{{%").replace(
        "{{ m.content }}", f"{{% if m.role == 'assistant' %}}{prefix}{{% endif %}}{{{{ m.content }}}}"
    )
    renderer = ChatRenderer(tokenizer)
    loud, quiet = _conversation("q", "a"), replace(_conversation("q", "a"), chat_template_kwargs={"quiet": True})
    for conversation, answer in (loud, "a"), (quiet, "<think></think>a"), (loud, "a"), (quiet, "<think></think>a"):
        for rendered in renderer.render(conversation), *renderer.render_all([conversation, loud], whole=False)[:1]:
            assert isinstance(rendered, Rendered)
            kwargs = conversation.chat_template_kwargs
            assert rendered.text == tokenizer.apply_chat_template(conversation.messages, tokenize=False, **kwargs)
            assert _texts(rendered, ContextType.RESPONSE) == [answer]
            assert not rendered.unread
    for conversation, opened in (quiet, "<think></think>"), (loud, ""):
        prompt = renderer.prompt_of_last(conversation)
        assert prompt and prompt[0].endswith(f"assistant\n{opened}") and prompt[1] == opened


def test_a_variable_that_only_the_generation_prompt_reads_is_read(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML.replace("assistant\n{%", "assistant\n{{ loud }}{%")
    loud = replace(_conversation("q", "a"), chat_template_kwargs={"loud": "!"})
    assert ChatRenderer(tokenizer).render(loud).unread == []
    assert ChatRenderer(tokenizer).render(replace(loud, chat_template_kwargs={"lud": "!"})).unread == [
        "chat_template_kwargs"
    ]


@pytest.mark.parametrize(
    ("extra", "unread"),
    [
        ("", ["name", "reasoning_content", "tool_calls", "tools", "chat_template_kwargs"]),
        ("{{ m.name }}{{ m.reasoning }}{{ m.tool_calls | tojson if m.tool_calls }}{{ tools[0].name }}{{ loud }}", []),
        (
            "{{ m.name }}{{ m.thinking }}{{ tools | length }}",
            ["tool_calls", "chat_template_kwargs"],
        ),
    ],
)
def test_what_the_template_does_not_read(tokenizer: PreTrainedTokenizerFast, extra: str, unread: list[str]) -> None:
    tokenizer.chat_template = CHATML.replace("{{ m.content }}", f"{extra}{{{{ m.content }}}}")
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "see", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "name": "look", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    conversation = Conversation(messages, ORIGIN, [{"name": "look"}], chat_template_kwargs={"loud": "LOUD"})
    [rendered] = ChatRenderer(tokenizer).render_all([conversation], whole=True)
    assert isinstance(rendered, Rendered)
    assert sorted(rendered.unread) == sorted(unread)
    assert ("hm" in rendered.text) == ("reasoning_content" not in unread)


def test_calls_that_are_all_of_an_answer_and_not_written_are_refused_with_a_way_out(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    conversation = _conversation("q", "")
    conversation.messages[-1]["tool_calls"] = [{"function": {"name": "look", "arguments": {"at": "x"}}}]
    tokenizer.chat_template = CHATML
    with pytest.raises(RowError, match=r"leaves out all of an answer.*--tools hermes"):
        ChatRenderer(tokenizer).render(conversation)
    conversation.messages[-1]["tool_calls"] = [{"function": {"name": "look", "arguments": {}}}]
    with pytest.raises(RowError, match=r"leaves out all of an answer.*--tools hermes"):
        ChatRenderer(tokenizer).render(conversation)


def test_an_answer_that_is_left_out_with_its_turn_is_reported_and_one_whose_turn_stays_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    conversation = _conversation("q", "early", "r", "a")
    tokenizer.chat_template = CHATML.replace("in messages %}", "in messages[-2:] %}")
    rendered = ChatRenderer(tokenizer).render(conversation)
    assert _texts(rendered, ContextType.OTHER, QUERY) == ["r"]
    assert _texts(rendered, ContextType.RESPONSE) == ["a"]
    assert rendered.shortened == [0, 1]
    tokenizer.chat_template = CHATML.replace("{{ m.content }}", "{{ m.content if loop.index0 != 1 }}")
    with pytest.raises(RowError, match="leaves out all of an answer"):
        ChatRenderer(tokenizer).render(conversation)


def test_a_template_that_raises_is_a_refusal_with_its_own_words(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system,\n please') }}{% endif %}"
    )
    with pytest.raises(RowError) as refusal:
        ChatRenderer(tokenizer).render(_conversation("q", "a"))
    assert (refusal.value.reason, refusal.value.detail) == ("the chat template refuses it", "a system, please")
    good = _conversation("q", "a", system="s")
    first, refused, last = ChatRenderer(tokenizer).render_all([good, _conversation("q", "a"), good], whole=True)
    assert isinstance(refused, RowError)
    assert refused.detail == "a system, please"
    assert first == last == ChatRenderer(tokenizer).render_all([good], whole=True)[0]


def test_a_date_that_changes_between_two_renderings(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import chat_template_utils

    class Clock:
        days = iter(["Monday"] + ["Tuesday"] * 100)

        @classmethod
        def now(cls) -> "Clock":
            return cls()

        def strftime(self, _: str) -> str:
            return next(self.days)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    tokenizer.chat_template = "Today is {{ strftime_now('%A') }}.\n" + CHATML
    rendered = ChatRenderer(tokenizer).render(_conversation("q", "a"))
    assert rendered.text.startswith("Today is Tuesday.")
    assert _texts(rendered, ContextType.RESPONSE) == ["a"]


def test_what_was_learned_of_one_conversation_is_not_believed_of_another(tokenizer: PreTrainedTokenizerFast) -> None:
    """A template with a branch for some contents: a renderer that has seen others must tell the branch."""
    tokenizer.chat_template = CHATML.replace(
        "{{ m.content }}", "{{ '(sic) ' if 'odd' in m.content }}{{ m.content }}{{ '!' if 'loud' in m.content }}"
    )
    renderer = ChatRenderer(tokenizer)
    for contents in (
        ("q1", "a1"),
        ("odd", "a2"),
        ("q3", "odd"),
        ("q4", "loud"),
        ("odd loud", "odd loud"),
        ("q6", "a6"),
    ):
        one = renderer.render(_conversation(*contents))
        assert one == ChatRenderer(tokenizer).render(_conversation(*contents))
        [answer] = _texts(one, ContextType.RESPONSE)
        odd, loud = "odd" in contents[1], "loud" in contents[1]
        assert answer == ("(sic) " if odd else "") + contents[1] + ("!" if loud else "")


def test_random_conversations_of_odd_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    """Assistants alone write Cyrillic, the others alone Greek; whatever stands around these letters."""
    odd = [" ", "\n", "<|im_end|>", "<think>", "</think>", "[INST]", "<b>", "好", "🎉", '"', "\\", "### Response:\n"]
    chance = random.Random(20)

    def text(letters: str) -> str:
        return "".join(chance.choice([*odd, *letters * 4]) for _ in range(chance.randrange(9)))

    for template in (CHATML, TRIMMED, ALPACA, MISTRAL, THINKS):
        tokenizer.chat_template = template
        renderer = ChatRenderer(tokenizer)
        for _ in range(60):
            turns = [text("абв" if place % 2 else "αβγ") for place in range(2 * chance.randint(1, 3))]
            conversation = _conversation(*turns, system=text("δεζ") if chance.random() < 0.3 else None)
            rendered = renderer.render(conversation)
            assert rendered.text == tokenizer.apply_chat_template(conversation.messages, tokenize=False)
            assert [s.start for s in rendered.segments] == [0, *(s.end for s in rendered.segments[:-1])]
            assert rendered.segments[-1].end == len(rendered.text)
            for segment in rendered.segments:
                letters = set(rendered.text[segment.start : segment.end])
                assert not letters & set("αβγδεζ" if segment.type is ContextType.RESPONSE else "абв")


def _tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "词", "parameters": {}}}


class _Format:
    """A tools format that writes in a way of its own."""

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        return f"{tool_names} {[desc['description'] for desc in tool_descs]}"

    def format_calls(self, calls: Any) -> str:
        return "|".join(f"{call['name']}{sorted(call['arguments'].items())}" for call in calls)

    def format_results(self, results: Any) -> str:
        return "|".join(f"{result['name']}={result['content']}" for result in results)


def _with_tools(system: str | None) -> Conversation:
    def call(**arguments: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "look", "arguments": arguments}}

    conversation = _conversation("q", "let me see", system=system)
    conversation.messages[-1]["tool_calls"] = [call(at="x"), call(at=2)]
    conversation.messages += [
        {"role": "tool", "name": "look", "content": "r1"},
        {"role": "tool", "name": "look", "content": "r2"},
        {"role": "assistant", "content": "done", "loss": False},
    ]
    conversation.tools = [_tool("look"), _tool("leap")]
    return conversation


@pytest.mark.parametrize(("system", "expected"), [("be brief", "be brief\n\n"), (None, ""), ("", "")])
def test_a_tools_format_writes_plain_turns(
    tokenizer: PreTrainedTokenizerFast, system: str | None, expected: str
) -> None:
    tokenizer.chat_template = CHATML
    rendered = ChatRenderer(tokenizer, _Format()).render(_with_tools(system))
    turns = [
        ("system", expected + "['look', 'leap'] ['词', '词']"),
        ("user", "q"),
        ("assistant", "let me see\nlook[('at', 'x')]|look[('at', 2)]"),
        ("user", "look=r1|look=r2"),
        ("assistant", "done"),
    ]
    assert rendered.text == "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert _texts(rendered, ContextType.OTHER, SYSTEM) == [turns[0][1]]
    assert _texts(rendered, ContextType.OTHER, QUERY) == ["q", "look=r1|look=r2"]
    assert _texts(rendered, ContextType.RESPONSE) == [turns[2][1], "done"]
    offset = 0 if system is None else 1
    indices = [s.message_index for s in rendered.segments if s.type is ContextType.RESPONSE]
    assert indices == [1 + offset, 4 + offset]  # as the row counts them, for its `loss` and `loss_scale`
    assert all(s.is_last_round for s in rendered.segments if s.type is ContextType.RESPONSE)


def test_a_plain_function_is_a_tools_format(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML
    rendered = ChatRenderer(tokenizer, lambda tool_names, tool_descs: " ".join(tool_names)).render(_with_tools(None))
    assert _texts(rendered, ContextType.OTHER, SYSTEM) == ["look leap"]
    assert _texts(rendered, ContextType.RESPONSE)[0] == (
        'let me see\n{"name": "look", "arguments": {"at": "x"}}\n{"name": "look", "arguments": {"at": 2}}'
    )
    assert _texts(rendered, ContextType.OTHER, QUERY) == ["q", "r1\nr2"]


def test_a_tools_format_that_returns_no_text_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    def as_list(tool_names: Any, tool_descs: Any) -> Any:
        return tool_names

    with pytest.raises(UserError, match=r"tools: the format returned \['look', 'leap'\], expected text"):
        ChatRenderer(tokenizer, as_list).render(_with_tools(None))


def test_no_text_leaves_tools_and_calls_to_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ tools | tojson }}\n" + CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %} call {{ c.function | tojson }}{% endfor %}"
    )
    conversation = _with_tools(None)
    rendered = ChatRenderer(tokenizer, lambda tool_names, tool_descs: None).render(conversation)
    messages = [{k: v for k, v in message.items() if k != "loss"} for message in conversation.messages]
    assert rendered.text == tokenizer.apply_chat_template(messages, tools=conversation.tools, tokenize=False)
    assert _texts(rendered, ContextType.RESPONSE)[0].startswith(
        'let me see call {"name": "look", "arguments": {"at": "x"}}'
    )
    assert _texts(rendered, ContextType.OTHER, QUERY) == ["q", "r1", "r2"]
