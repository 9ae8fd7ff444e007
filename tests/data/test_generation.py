"""Prompts and answers of generation are parts of the text that training makes of the same conversation."""

from typing import Any

import pytest

from swiftplug.builtin.models.tiny import byte_tokenizer
from swiftplug.builtin.tasks.language import SupervisedFineTuning
from swiftplug.config.schema import DataOptions
from swiftplug.data.chat.generation import GenerationChat
from swiftplug.data.encode import RowEncoder
from swiftplug.data.read.conversation import Conversation, RowOrigin
from swiftplug.data.read.report import SplitReport
from swiftplug.errors import UserError
from swiftplug.plugin import LossScale, Prompt

TURNS = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
OPENING = TURNS + "{% if add_generation_prompt %}{{ '<|assistant|>OPENED' }}{% endif %}"
GO = [{"role": "user", "content": "go"}]


def encode(tokenizer: Any, conversation: Conversation) -> dict[str, Any]:
    """The one example of a conversation, with what metrics that generate need."""
    encoder = RowEncoder(
        tokenizer, None, LossScale(), SupervisedFineTuning(), DataOptions(max_length=10**6), generation=True
    )
    [example] = encoder.encode([(conversation,)], SplitReport())
    return example


@pytest.mark.parametrize(
    ("opened", "answer"),
    [
        ("<think>\n", "<think>\nadd\n</think>\n\n4"),
        ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n4"),
        ("[THINK]", "[THINK]add[/THINK]4"),
        ("<reasoning>\n", "<reasoning>\nadd</reasoning>4"),
        ("<|tool|>", "<|tool|>add(2,2)"),
        ("", "4"),
    ],
)
def test_what_the_prompt_opens_belongs_to_the_answer(opened: str, answer: str) -> None:
    """Kept as text and trained again, an answer has the tokens that were sampled."""
    tokenizer = byte_tokenizer(512)
    tokenizer.chat_template = OPENING.replace("OPENED", opened.replace("\n", "\\n"))
    chat = GenerationChat(tokenizer)
    ids, found = chat.encode(Prompt("row", GO))
    assert found == opened
    sampled = tokenizer(answer.removeprefix(opened), add_special_tokens=False)["input_ids"]
    text = chat.answer([*sampled, tokenizer.eos_token_id, tokenizer.pad_token_id], found)
    assert text == answer
    kept = Conversation([*GO, {"role": "assistant", "content": text}], RowOrigin("samples.jsonl", 1))
    example = encode(tokenizer, kept)
    assert example["input_ids"].tolist() == [*ids, *sampled, tokenizer.eos_token_id]
    assert example["reference"] == answer
    trained = [label for label in example["labels"].tolist() if label != -100]
    assert trained == [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_what_the_template_never_writes_in_an_answer_does_not_belong_to_it() -> None:
    tokenizer = byte_tokenizer(512)
    trimmed = TURNS.replace("m.content", "(m.content | trim)")
    tokenizer.chat_template = trimmed + "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    assert GenerationChat(tokenizer).encode(Prompt("row", GO))[1] == ""


def test_a_prompt_that_differs_from_others_is_compared_with_its_own_conversation() -> None:
    """SmolLM3's template writes an empty block of thinking where the system message has `/no_think`."""
    tokenizer = byte_tokenizer(512)
    quiet = "{% if '/no_think' in messages[0].content %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}"
    turn = "{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}QUIET{% endif %}{{ m.content + '<|end|>' }}"
    tokenizer.chat_template = (
        "{% for m in messages %}" + turn + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}QUIET{% endif %}"
    ).replace("QUIET", quiet)
    chat = GenerationChat(tokenizer)
    assert chat.encode(Prompt("row", GO))[1] == ""
    system = [{"role": "system", "content": "/no_think"}]
    assert chat.encode(Prompt("row", system + GO))[1] == "<think>\n\n</think>\n"
    answer = {"role": "assistant", "content": "4"}
    assert encode(tokenizer, Conversation([*system, *GO, answer], RowOrigin("rows", 1)))["reference"] == (
        "<think>\n\n</think>\n4"
    )


def test_an_end_of_turn_that_is_no_token_ends_an_answer_as_text() -> None:
    tokenizer = byte_tokenizer(512)
    tokenizer.chat_template = OPENING.replace("OPENED", "").replace("<|end|>", "<|im_end|>")
    chat = GenerationChat(tokenizer)
    assert (chat.end_ids, chat.stop_text) == ([tokenizer.eos_token_id], "<|im_end|>")
    ids = tokenizer("4 < 5<|im_end|>", add_special_tokens=False)["input_ids"]
    assert [chat.has_stopped(ids[: place + 1]) for place in range(len(ids))] == [False] * (len(ids) - 1) + [True]
    assert chat.answer([*ids, 9]) == "4 < 5"


def test_a_prompt_that_the_template_refuses_is_told_apart() -> None:
    tokenizer = byte_tokenizer(512)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
    )
    with pytest.raises(UserError, match=r"^the chat template refuses the prompt: no system$"):
        GenerationChat(tokenizer).encode(Prompt("row", [{"role": "system", "content": "x"}, *GO]))


def test_variables_of_the_chat_template_open_what_they_say() -> None:
    tokenizer = byte_tokenizer(512)
    tokenizer.chat_template = OPENING.replace("OPENED", "' + ('<think>\\n\\n</think>\\n\\n' if quiet else '') + '")
    chat = GenerationChat(tokenizer)
    assert chat.encode(Prompt("row", GO))[1] == ""
    ids, opened = chat.encode(Prompt("row", GO, None, {"quiet": True}))
    assert opened == "<think>\n\n</think>\n\n" and tokenizer.decode(ids).endswith(f"<|assistant|>{opened}")
