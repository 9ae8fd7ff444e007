"""Rows of preference tasks: pairs and rated answers, as they come from the dataset into batches."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from swiftplug.data.batching import Collator
from swiftplug.data.prepare import PreparedData
from swiftplug.data.read.conversation import RowError, RowOrigin
from swiftplug.data.read.tasks import to_conversations
from swiftplug.errors import UserError
from swiftplug.plugin import Rows, Task

Prepare = Callable[..., PreparedData]


class Pairs(Task):
    rows = Rows.PAIRS
    kinds = frozenset({"loss_scale"})


class Rewarded(Pairs):
    head = "sequence"


class Rated(Task):
    rows = Rows.RATED
    kinds = frozenset({"loss_scale"})


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


def texts(data: PreparedData, tokenizer: PreTrainedTokenizerFast, prefix: str = "") -> list[tuple[str, str]]:
    """Of each example, the text and the part of it that is trained."""
    return [
        (
            tokenizer.decode(example[f"{prefix}input_ids"]),
            tokenizer.decode([label for label in example[f"{prefix}labels"] if label != -100]),
        )
        for example in data.train
    ]


def chat(tokenizer: PreTrainedTokenizerFast, *contents: str) -> str:
    return str(tokenizer.apply_chat_template(turns(*contents), tokenize=False))


RATED = [
    {"prompt": "q1", "completion": "a1", "label": True},
    {"messages": turns("q2", "a2"), "label": "False"},
    {"query": "q3", "response": "a3", "history": [["q0", "a0"]], "kto_tag": True},
    {"conversations": turns("q4", "a4"), "label": 0},
    {"instruction": "q5", "output": "a5", "label": "1"},
]


def test_rated_rows_have_their_rating_and_the_answer_before_as_second_conversation(
    prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = prepare(write_jsonl(RATED), task=Rated())
    prompts = [("q1",), ("q2",), ("q0", "a0", "q3"), ("q4",), ("q5",)]
    answers = ["a1", "a2", "a3", "a4", "a5"]
    assert texts(data, tokenizer) == [
        (chat(tokenizer, *prompt, answer), f"{answer}<|im_end|>")
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    assert texts(data, tokenizer, "second_") == [
        (chat(tokenizer, *prompt, answer), f"{answer}<|im_end|>")
        for prompt, answer in zip(prompts, answers[-1:] + answers[:-1], strict=True)
    ]
    report = data.report.train
    assert (report.rows, report.kept, report.examples) == (5, 5, 5)
    assert report.trained_tokens == sum(int((example["labels"] != -100).sum()) for example in data.train)
    batch = Collator(0)([*data.train])
    assert batch["rating"].tolist() == [True, False, True, False, True]
    assert batch["length"].shape == (5,)
    assert batch["input_ids"].shape[0] == 10
    assert tokenizer.decode(batch["input_ids"][5], skip_special_tokens=True) == "user\nq1\nassistant\na5\n"


def test_the_ratings_are_counted(prepare: Prepare, write_jsonl: Any) -> None:
    lines = prepare(write_jsonl(RATED), task=Rated()).report.lines()
    assert lines[0].startswith("train: 5 of 5 rows, ")
    assert lines[1] == "  3 rated good, 2 rated bad"
    lines = prepare(write_jsonl([{**row, "label": False} for row in RATED[:2]]), task=Rated()).report.lines()
    assert lines[1] == "  0 rated good, 2 rated bad"


def test_pairs_are_taken_apart(prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good{i}", "rejected": f"bad{i}"} for i in range(3)]
    data = prepare(write_jsonl(rows), task=Rated())
    assert [example["rating"] for example in data.train] == [True, False] * 3
    assert [trained for _, trained in texts(data, tokenizer)] == [
        f"{kind}{i}<|im_end|>" for i in range(3) for kind in ("good", "bad")
    ]
    report = data.report.train
    assert (report.rows, report.kept, report.examples) == (3, 3, 6)


def test_what_all_rows_lack_is_said_once(prepare: Prepare, write_jsonl: Any) -> None:
    path = write_jsonl([{"prompt": "q", "chosen": "a", "rejected": "b"}, *[{"prompt": "q", "completion": "a"}] * 3])
    [_, line, *_] = prepare(path, task=Pairs()).report.lines()
    reason = "no rejected answer (expected `rejected_response` or `rejected`; task sft takes answers alone)"
    assert line == f"  3 rows left out: {reason}: {path}:2; {path}:3; {path}:4"


def test_a_head_on_the_sequence_needs_no_trained_tokens_and_none_are_counted(
    prepare: Prepare, write_jsonl: Any
) -> None:
    pairs = write_jsonl([{"prompt": "q", "chosen": [{**turns("", "a")[1], "loss": False}], "rejected": "b"}])
    with pytest.raises(UserError, match="none usable: no token to train on"):
        prepare(pairs, task=Pairs())
    report = prepare(pairs, task=Rewarded()).report
    assert (report.train.kept, report.train.tokens) == (1, 2 * report.train.longest)
    assert "trained" not in report.lines()[0]


@pytest.mark.parametrize("paired", [True, False])
def test_the_other_answers_are_those_of_trl(
    paired: bool, prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import KTOConfig, KTOTrainer

    rows: list[dict[str, Any]] = [
        {"prompt": turns(f"q{i}"), "chosen": turns("", f"a{i}")[1:], "rejected": turns("", f"b{i}")[1:]}
        for i in range(4)
    ]
    if not paired:
        rows = [
            {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 3 == 0} for i, row in enumerate(rows)
        ]
    data = prepare(write_jsonl(rows), task=Rated())
    config = LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    arguments = KTOConfig(
        str(tmp_path / "kto"), per_device_train_batch_size=8, max_length=None, use_cpu=True, bf16=False, report_to=[]
    )
    model, dataset = LlamaForCausalLM(config), Dataset.from_list(rows)
    trainer = KTOTrainer(model, LlamaForCausalLM(config), arguments, None, dataset, processing_class=tokenizer)
    expected = {
        (tokenizer.decode(row["prompt_ids"] + row["completion_ids"]), row["label"]): tokenizer.decode(
            row["prompt_ids"] + row["KL_completion_ids"]
        )
        for row in trainer.train_dataset
    }
    ours = zip(texts(data, tokenizer), data.train["rating"], texts(data, tokenizer, "second_"), strict=True)
    assert {(text, bool(rating)): other for (text, _), rating, (other, _) in ours} == expected


def test_the_other_answer_answers_another_prompt_where_there_is_one(
    prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"prompt": f"q{i // 3}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(6)]
    data = prepare(write_jsonl(rows), task=Rated())
    assert [trained[:2] for _, trained in texts(data, tokenizer, "second_")] == ["a5"] * 3 + ["a2"] * 3
    data = prepare(write_jsonl([{**row, "prompt": "q"} for row in rows]), task=Rated())
    assert [trained[:2] for _, trained in texts(data, tokenizer, "second_")] == [f"a{i}" for i in (5, 0, 1, 2, 3, 4)]


def test_the_other_answers_come_from_usable_rows_and_do_not_depend_on_processes(
    prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    good = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(1200)]
    for i in range(0, 1200, 7):
        good[i] = {"prompt": f"q{i}", "completion": "x" * 200, "label": True}
    options: dict[str, Any] = {"task": Rated(), "max_length": 60}
    data = [
        prepare(write_jsonl(good), num_proc=number, cache_dir=str(tmp_path / str(number)), **options)
        for number in (1, 2)
    ]
    seconds = [texts(each, tokenizer, "second_") for each in data]
    assert seconds[0] == seconds[1]
    others = [trained for _, trained in seconds[0]]
    assert len(others) == 1200 - len(range(0, 1200, 7))
    assert others[1:6] == [f"a{i}<|im_end|>" for i in range(1, 6)]
    assert others[6] == "a6<|im_end|>"  # the row between is too long


def test_the_last_of_many_rows_has_others_to_compare_with(prepare: Prepare, write_jsonl: Any) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(257)]
    report = prepare(write_jsonl(rows), task=Rated()).report.train
    assert (report.rows, report.kept, report.dropped) == (257, 257, {})


def test_another_rows_long_answer_leaves_no_row_out(
    prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        {"prompt": "a long question", "completion": "a", "label": True},
        {"prompt": "q", "completion": "a long answer", "label": False},
    ]
    data = prepare(write_jsonl(rows), task=Rated(), max_length=45)
    assert [len(example["second_input_ids"]) for example in data.train] == [45, 23]
    assert data.train["length"][:].tolist() == [45, 35]
    assert data.report.train.truncated == 0


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
CALLING = [*turns("q"), {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "r"}]
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


def pair(row: dict[str, Any]) -> list[list[str]]:
    """The conversations of a row as `role: content`, with a star where an assistant's message trains."""
    return [
        [
            f"{message['role']}: {message['content']}{'*' * (message['role'] == 'assistant' and 'loss' not in message)}"
            for message in conversation.messages
        ]
        for conversation in to_conversations(row, RowOrigin("rows.jsonl", 1), Rows.PAIRS)
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("q", "x", "r", "good"), "rejected_response": "bad"},
        {"messages": turns("q", "x", "r", "good"), "rejected_response": [BAD]},
        {"messages": turns("q", "x", "r", "good"), "rejected_messages": turns("q", "x", "r", "bad")},
        {"prompt": turns("q", "x", "r"), "chosen": "good", "rejected": "bad"},
        {"prompt": turns("q", "x", "r"), "chosen": [GOOD], "rejected": BAD},
        {"prompt": json.dumps(turns("q", "x", "r")), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
        {"chosen": turns("q", "x", "r", "good"), "rejected": turns("q", "x", "r", "bad")},
        {
            "prompt": "r",
            "chosen": turns("q", "x", "r", "good"),
            "rejected": turns("q", "x", "r", "bad"),
            "messages": turns("q", "x", "r", "good"),
        },
        {
            "chosen": "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: bad",
        },
        {"instruction": "r", "input": "", "history": [["q", "x"]], "chosen": "good", "rejected": "bad"},
        {"query": "r", "history": [["q", "x"]], "response": "good", "rejected_response": "bad"},
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "x"},
                {"from": "human", "value": "r"},
            ],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
)
def test_all_formats_of_one_pair(row: dict[str, Any]) -> None:
    before = ["user: q", "assistant: x", "user: r"]
    assert pair(row) == [[*before, "assistant: good*"], [*before, "assistant: bad*"]]
    with_system = [["system: s", *each] for each in pair(row)]
    assert pair({**row, "system": "s"}) == with_system


def test_an_answer_of_several_messages() -> None:
    before = ["user: q"]
    chosen, common = {"messages": [*CALLING, GOOD]}, ["user: q", "assistant: ", "tool: r"]
    other_call = {**CALL, "function": {"name": "look", "arguments": {"at": "y"}}}
    rejected = [{"role": "assistant", "content": "", "tool_calls": [other_call]}, {"role": "tool", "content": "s"}, BAD]
    # A single message replaces the last one, and several replace all that follows the question.
    assert pair({**chosen, "rejected_response": "bad"}) == [[*common, "assistant: good*"], [*common, "assistant: bad*"]]
    assert pair({**chosen, "rejected_response": rejected}) == [
        [*before, "assistant: *", "tool: r", "assistant: good*"],
        [*before, "assistant: *", "tool: s", "assistant: bad*"],
    ]
    # What a row has as its prompt is the prompt.
    assert pair({"prompt": CALLING, "chosen": "good", "rejected": "bad"}) == [
        [*common, "assistant: good*"],
        [*common, "assistant: bad*"],
    ]


def test_pairs_have_the_tokens_of_the_chat_template_and_their_margin(
    prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    sampled = {
        "id": "5f",
        "messages": turns("q", "x", "r", "good"),
        "rejected_response": "bad",
        "scores": {"math": 1.0},
    }
    thinking = [*turns("t"), {"role": "assistant", "content": "bad", "reasoning_content": "hm"}]
    rows = [sampled, {"prompt": "t", "chosen": "good", "rejected": thinking, "margin": 1.5}]
    data = prepare(write_jsonl(rows), task=Pairs())
    assert texts(data, tokenizer) == [
        (chat(tokenizer, "q", "x", "r", "good"), "good<|im_end|>"),
        (chat(tokenizer, "t", "good"), "good<|im_end|>"),
    ]
    assert texts(data, tokenizer, "second_") == [
        (chat(tokenizer, "q", "x", "r", "bad"), "bad<|im_end|>"),
        (str(tokenizer.apply_chat_template(thinking, tokenize=False)), "bad<|im_end|>"),
    ]
    for example in data.train:
        assert example["length"] == max(len(example["input_ids"]), len(example["second_input_ids"]))
    assert Collator(0)([*data.train])["margin"].tolist() == [0, 1.5]
    report = data.report.train
    both = [
        (example[f"{prefix}input_ids"], example[f"{prefix}labels"])
        for example in data.train
        for prefix in ("", "second_")
    ]
    assert (report.rows, report.kept, report.examples) == (2, 2, 2)
    assert report.tokens == sum(len(ids) for ids, _ in both)
    assert report.trained_tokens == sum(int((labels != -100).sum()) for _, labels in both)
    assert report.longest == max(len(ids) for ids, _ in both)
    assert report.unread.lines() == ["1 row has `id`, `scores`, 1 message has `reasoning_content`: not read"]


def test_pairs_that_are_too_long(prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "a long answer"},
        {"prompt": "q", "chosen": "an answer: a", "rejected": "an answer: b"},
        {"prompt": "a long question", "chosen": "a", "rejected": "b"},
    ]
    path = write_jsonl(rows)
    data = prepare(path, task=Pairs(), max_length=30)
    assert texts(data, tokenizer, "second_") == [(chat(tokenizer, "q", "b"), "b<|im_end|>")]
    assert data.report.train.dropped["longer than max_length"].count == 3
    data = prepare(path, task=Pairs(), max_length=30, too_long="truncate")
    assert [trained for _, trained in texts(data, tokenizer)] == ["a<|im_end|>"] * 2
    assert [trained for _, trained in texts(data, tokenizer, "second_")] == ["b<|im_end|>", "a long ans"]
    report = data.report.train
    assert (report.kept, report.truncated) == (2, 1)
    assert {reason: each.count for reason, each in report.dropped.items()} == {
        "the two answers are the same": 1,
        "no token to train on": 1,
    }
    with pytest.raises(UserError, match=r"data\.too_long: Pairs takes each row whole; expected drop or truncate"):
        prepare(path, task=Pairs(), too_long="split")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "the two answers are the same"),
        ({"prompt": "q", "chosen": "", "rejected": "a"}, "the answer is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "the rejected answer is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": " \n"}, "the rejected answer is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": 3}, "`rejected` is neither text nor messages"),
        ({"chosen": turns("q", "a"), "rejected": turns("r", "b")}, "no common prompt: .*message 1 first"),
        (
            {"chosen": turns("q", "a"), "rejected": turns("q", "a", "r", "b")},
            "one answer of a pair continues the other",
        ),
        ({"messages": turns("q", "a", "r"), "rejected_response": "b"}, "no answer: the last message is 'user'"),
        (
            {"chosen": turns("q", "a"), "rejected": turns("q", "b", "r")},
            "no rejected answer: its last message is 'user'",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "rejected_response": "c"}, "two rejected answers"),
        ({"messages": turns("q", "a"), "chosen": "c", "rejected": "b"}, "two preferred answers"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "label": True}, "both labelled and one of a pair"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "wide"},
            "`margin` is not a finite number: .*'wide'",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": True}, "`margin` is not a finite number"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e39}, "it is 1e.39; the largest is 3.4e.38"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400}, "`margin` is not a finite number"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "images": ["a.png"]}, "images, audio or video"),
        ({"prompt": [*turns("<image>q")], "chosen": "a", "rejected": "b"}, "images, audio or video"),
        ({"prompt": "q", "chosen": "a", "rejected": "b<image>"}, "images, audio or video"),
        # Rows of other tasks.
        ({"prompt": "q", "completion": "a"}, r"no rejected answer \(expected `rejected_response` .*task sft"),
        ({"prompt": "q", "completion": "a", "label": False}, "labelled good or bad: task kto"),
        ({"prompt": "q", "label": "spam"}, "a label in place of an answer: task seq_cls"),
        ({"text": "t"}, "no rejected answer .*task pt"),
        ({"text": "t", "label": 1}, "no rejected answer .*task seq_cls"),
        ({"text": "t", "label": True}, "no rejected answer .*task seq_cls"),
    ],
)
def test_rows_that_are_no_pairs(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        pair(row)
    assert re.search(reason, str(caught.value))


@pytest.mark.parametrize("task", [Pairs(), Rated()])
def test_weights_are_0_and_1(
    task: Task, prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = {"messages": [*turns("q"), {**GOOD, "loss_scale": 0.5}], "rejected_response": "heavy"}
    with pytest.raises(
        UserError,
        match=r"data.jsonl:1: loss scale 'default' .* and a `loss_scale` of the row weighs "
        r"'good' 0.5; \w+ takes the weights 0 and 1 only",
    ):
        prepare(write_jsonl([row]), task=task)
    rows = [{**row, "messages": turns("q", "good")}]
    with pytest.raises(UserError, match=r"data.jsonl:1: loss scale .*by_word.* weighs 'heavy' 2.5"):
        prepare(write_jsonl(rows), task=task, loss_scale="by_word")
    data = prepare(write_jsonl(rows), task=task, loss_scale="last_round")
    assert texts(data, tokenizer)[0][1] == "good<|im_end|>"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "q", "completion": "a", "label": True}], "no other answer to compare with"),
        ([{"prompt": "q", "completion": "a", "label": "good"}], "`label` is not true or false (1 row): .*'good'"),
        ([{"prompt": "q", "completion": "a", "label": 2}], "`label` is not true or false"),
        ([{"prompt": "q", "completion": "a", "label": [True]}], "`label` is not true or false"),
        ([{"prompt": "q", "completion": "a", "label": True, "kto_tag": False}], "labelled both good and bad"),
        ([{"prompt": "q", "completion": "a"}], "no answer labelled good or bad .*expected `label`: true or false"),
        ([{"prompt": "q", "completion": "", "label": True}], "the answer is empty"),
        ([{"prompt": "q", "chosen": "a", "rejected": "b", "label": True}], "both labelled and one of a pair"),
        ([{"text": "a text", "label": True}], "no answer labelled good or bad"),
    ],
)
def test_rows_that_are_not_rated(prepare: Prepare, write_jsonl: Any, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(1 row)", r"\(1 row\)")):
        prepare(write_jsonl(rows), task=Rated())
