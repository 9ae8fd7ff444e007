"""Encoding: lengths, labels, text rows, what is dropped and reported, and what a tokenizer must have."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from swiftplug.builtin.tasks.language import Pretraining, SupervisedFineTuning
from swiftplug.config.schema import DataOptions
from swiftplug.data.encode import Example, RowEncoder
from swiftplug.data.read.conversation import Conversation, RawRow, RowOrigin
from swiftplug.data.read.report import Dropped, SplitReport
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, LossScale
from swiftplug.plugin.tokenizer import set_chat_template

PT, SFT = Pretraining(), SupervisedFineTuning()


class Half(LossScale):
    """Weighs responses a half, queries a quarter, and counts what it was asked."""

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, *, role: str, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        return [context], [0.25 if role == "user" else 0.5 * (context_type is not ContextType.OTHER)]


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def _chat(*contents: str, line: int = 1, **more: Any) -> Conversation:
    turns = [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]
    return Conversation(turns, RowOrigin("rows.jsonl", line), **more)


def _text(text: str, line: int = 1) -> Conversation:
    return Conversation([], RowOrigin("rows.jsonl", line), text=text)


class Encoded(NamedTuple):
    examples: list[Example]
    report: SplitReport


def _encode(
    conversations: list[Conversation],
    tokenizer: PreTrainedTokenizerFast,
    loss_scale: LossScale | None = None,
    task: Any = SFT,
    generation: bool = False,
    **options: Any,
) -> Encoded:
    given = DataOptions(**{"max_length": 1000, "too_long": "drop", **options})
    encoder = RowEncoder(tokenizer, None, loss_scale or LossScale(), task, given, generation)
    report = SplitReport()
    return Encoded(encoder.encode([(each,) for each in conversations], report), report)


def test_a_text_is_the_tokenizers_tokens_and_the_end_of_text_token(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["学 plain text\n", "<|im_end|> inside", "ends in <|im_end|>"]
    batch = _encode([_text(text) for text in texts], tokenizer, task=PT)
    for text, example in zip(texts, batch.examples, strict=True):
        ids = tokenizer(text)["input_ids"]
        expected = ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        assert example["input_ids"].tolist() == example["labels"].tolist() == expected
        assert set(example["loss_scale"].tolist()) == {1.0}
        assert example["length"] == len(expected)


def test_a_text_begins_as_the_tokenizer_begins_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    """With the begin-of-text token that the tokenizer puts there; a chat template writes its own."""
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    batch = _encode([_text("hello"), _chat("q", "a"), _text("bye")], tokenizer, task=PT)
    hello, chat, bye = (example["input_ids"].tolist() for example in batch.examples)
    assert hello == [begin, *tokenizer("hello", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert bye[0] == begin
    assert chat == tokenizer.apply_chat_template(_chat("q", "a").messages, return_dict=False)


def test_a_loss_scale_weighs_a_text_as_one_response(tokenizer: PreTrainedTokenizerFast) -> None:
    [example] = _encode([_text("hello")], tokenizer, task=PT, loss_scale=Half()).examples
    assert example["loss_scale"].tolist() == [0.5] * 6


def test_pretraining_on_messages_trains_all_that_the_template_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    conversation = _chat("q", "a", "r", "")
    [example] = _encode([conversation], tokenizer, task=PT).examples
    ids = tokenizer.apply_chat_template(conversation.messages, return_dict=False)
    assert example["input_ids"].tolist() == example["labels"].tolist() == ids


def test_too_long_rows_are_dropped_truncated_or_split(tokenizer: PreTrainedTokenizerFast) -> None:
    conversation = _chat("q", "a fairly long answer", line=9)
    whole = _encode([conversation], tokenizer).examples[0]
    length = whole["length"]
    dropped = _encode([conversation], tokenizer, max_length=length - 1)
    assert dropped.examples == []
    example = f"rows.jsonl:9 ({length} tokens, max_length is {length - 1})"
    assert dropped.report.dropped == {"longer than max_length": Dropped(1, [example])}
    assert dropped.report.shortest_too_long == length
    assert _encode([conversation], tokenizer, max_length=length).examples[0]["length"] == length
    for too_long, sizes in (("truncate", [30]), ("split", [30, length - 30])):
        batch = _encode([conversation], tokenizer, max_length=30, too_long=too_long)
        assert [example["length"] for example in batch.examples] == sizes
        assert batch.report.kept == 1
        assert (batch.report.truncated, batch.report.split) == (too_long == "truncate", too_long == "split")
        for name in ("input_ids", "labels", "loss_scale"):
            joined = np.concatenate([example[name] for example in batch.examples])
            np.testing.assert_array_equal(joined, whole[name][: sum(sizes)])


def test_a_row_that_has_nothing_left_to_train_is_dropped_with_that_reason(tokenizer: PreTrainedTokenizerFast) -> None:
    long_prompt = _chat("a prompt of many words", "a")
    cut = _encode([long_prompt], tokenizer, max_length=20, too_long="truncate")
    assert list(cut.report.dropped) == ["no token to train on"]
    untrained = _chat("q", "a")
    untrained.messages[1]["loss"] = False
    assert _encode([untrained], tokenizer).report.dropped == {"no token to train on": Dropped(1, ["rows.jsonl:1"])}


def test_split_rows_keep_only_the_parts_that_train(tokenizer: PreTrainedTokenizerFast) -> None:
    conversation = _chat("many many words of a long, long prompt", "a")
    batch = _encode([conversation], tokenizer, max_length=20, too_long="split")
    assert batch.report.dropped == {}
    assert all((example["labels"][1:] != -100).any() for example in batch.examples)


def test_every_row_is_an_example_or_a_drop(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('bad words') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    rows = [_chat("q", "a", line=1), _chat("bad", "a", line=2), _chat("q", "b", line=3), _chat("q", "c" * 99, line=4)]
    batch = _encode(rows, tokenizer, max_length=60)
    assert batch.report.kept == 2
    assert [example["input_ids"].tolist() for example in batch.examples] == [
        tokenizer.apply_chat_template(row.messages, return_dict=False) for row in (rows[0], rows[2])
    ]
    assert batch.report.dropped == {
        "the chat template refuses it": Dropped(1, ["rows.jsonl:2 (bad words)"]),
        "longer than max_length": Dropped(1, ["rows.jsonl:4 (121 tokens, max_length is 60)"]),
    }
    assert _encode([], tokenizer).examples == []
    assert _encode([rows[1]], tokenizer).examples == []


def test_rows_of_which_the_template_drops_a_part_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    whole, shortened = _chat("q", "a", line=1), _chat("q", "<think>so</think>a", line=2)
    assert _encode([whole, shortened], tokenizer).report.shortened == 1
    assert _encode([whole], tokenizer).report.shortened == 0


def test_prompts_to_generate_from(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [_chat("q", "a", "r", "the answer"), _chat("q", "a", "r"), _text("text")]
    batch = _encode(rows, tokenizer, generation=True)
    prompts = [example["prompt_ids"] for example in batch.examples]
    assert prompts[0] == tokenizer.apply_chat_template(
        rows[0].messages[:-1], add_generation_prompt=True, return_dict=False
    )
    assert prompts[1:] == [[], []]
    assert [example["reference"] for example in batch.examples] == ["the answer", "", ""]
    assert "prompt_ids" not in _encode(rows, tokenizer).examples[0]


def test_a_split_row_is_generated_from_once(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [RawRow({"prompt": "q", "completion": "a fairly long answer"}, RowOrigin("rows.jsonl", 1))]
    options = DataOptions(max_length=30, too_long="split")
    examples, report = RowEncoder(
        tokenizer, None, LossScale(), SupervisedFineTuning(), options, generation=True
    ).encode_rows(rows)
    [first, second] = examples.to_pylist()
    prompt = [{"role": "user", "content": "q"}]
    assert first["prompt_ids"] == tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert (first["reference"], second["prompt_ids"], second["reference"]) == ("a fairly long answer", [], "")
    assert (report.rows, report.kept, report.examples, report.split) == (1, 1, 2, 1)


def test_a_prompt_that_the_template_refuses_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% if add_generation_prompt and messages[0].content == 'q' %}{{ raise_exception('no prompt') }}{% endif %}"
        + tokenizer.chat_template
    )
    assert _encode([_chat("q", "a")], tokenizer).report.kept == 1
    refused = _encode([_chat("q", "a")], tokenizer, generation=True)
    assert refused.examples == []
    assert refused.report.dropped == {"the chat template refuses it": Dropped(1, ["rows.jsonl:1 (no prompt)"])}


def test_a_tokenizer_without_offsets_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    class Slow:
        is_fast = False

    slow: Any = Slow()
    with pytest.raises(UserError, match=r"the tokenizer Slow has no offsets.*expected a fast tokenizer"):
        _encode([_chat("q", "a")], slow)


def test_a_tokenizer_without_a_chat_template_gets_chatml_with_a_note(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    [note] = set_chat_template(tokenizer, None)
    assert note == "the tokenizer has no chat template: ChatML is used (to use another: --template FILE.jinja)"
    text = tokenizer.apply_chat_template(_chat("q", "a").messages, add_generation_prompt=True, tokenize=False)
    assert text == ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>assistant\n")
    own = tokenizer.chat_template
    assert set_chat_template(tokenizer, None) == []
    assert tokenizer.chat_template == own


def test_markers_that_a_vocabulary_does_not_have_are_reported(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.chat_template = None
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: {"<|im_end|>": 1})
    [note] = set_chat_template(tokenizer, None)
    assert note.endswith("; <|im_start|> are not in its vocabulary and are written as plain text")


def test_a_template_file_replaces_the_tokenizers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", encoding="utf-8")
    assert set_chat_template(tokenizer, str(path)) == []
    [example] = _encode([_chat("q", "学")], tokenizer).examples
    assert tokenizer.decode(example["input_ids"]) == "[user] q\n[assistant] 学\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{% for m in messages %}\n{{ m.role }\n{% endfor %}", "mine.jinja:2: not a Jinja template: unexpected '}'"),
        ("{% for m in messages %}", "mine.jinja:1: not a Jinja template: Unexpected end of template"),
        ("a\nb\n{{ 'x' | no_such_filter }}", "mine.jinja:3: not a Jinja template: No filter named 'no_such_filter'"),
    ],
)
def test_a_broken_template_file_is_reported_with_its_line(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, text: str, expected: str
) -> None:
    before = tokenizer.chat_template
    (tmp_path / "mine.jinja").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        set_chat_template(tokenizer, str(tmp_path / "mine.jinja"))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert tokenizer.chat_template == before


def test_a_missing_template_file_is_reported(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jinja: .*No such file"):
        set_chat_template(tokenizer, str(tmp_path / "none.jinja"))


def test_encoding_costs_little_more_than_rendering_and_tokenizing(tokenizer: PreTrainedTokenizerFast) -> None:
    """A guard against work that grows with the rows, not the benchmark: a byte tokenizer is quicker than a real one."""
    rows = [_chat(f"How much is {n} and {n}? " * 12, f"It is {2 * n}. Action: none. " * 12) for n in range(300)]

    def seconds(work: Any) -> float:
        best = float("inf")
        for _ in range(3):
            before = time.process_time()
            work()
            best = min(best, time.process_time() - before)
        return best

    plain = seconds(lambda: tokenizer.apply_chat_template([row.messages for row in rows]))
    assert seconds(lambda: _encode(rows, tokenizer, loss_scale=Half())) < 3 * plain


def test_what_the_chat_template_does_not_read_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    answer = {"role": "assistant", "content": "a", "foo": 1, "reasoning": "hm"}
    row = {"messages": [{"role": "user", "content": "q", "name": "Bo"}, answer], "tools": [tool]}
    encoder = RowEncoder(tokenizer, None, LossScale(), SupervisedFineTuning(), DataOptions(max_length=1000))
    _, report = encoder.encode_rows([RawRow(row, RowOrigin("rows.jsonl", line)) for line in (1, 2)])
    assert report.kept == 2
    [line] = report.unread.lines()
    assert line == (
        "2 rows have `tools`, 2 messages have `foo`, `name`, `reasoning_content`: not read "
        "(--tools hermes, or another tools format, writes tools and calls as text)"
    )
