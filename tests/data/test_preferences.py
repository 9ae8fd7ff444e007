"""Rows of preference tasks: pairs and rated answers, as they come from the dataset into batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from swiftplug.data.batching import Collator
from swiftplug.data.prepare import PreparedData
from swiftplug.errors import UserError
from swiftplug.plugin import Rows, Task

Prepare = Callable[..., PreparedData]


class Pairs(Task):
    rows = Rows.PAIRS
    kinds = frozenset({"loss_scale"})


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


def test_pairs_are_taken_apart(prepare: Prepare, write_jsonl: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good{i}", "rejected": f"bad{i}"} for i in range(3)]
    data = prepare(write_jsonl(rows), task=Rated())
    assert [example["rating"] for example in data.train] == [True, False] * 3
    assert [trained for _, trained in texts(data, tokenizer)] == [
        f"{kind}{i}<|im_end|>" for i in range(3) for kind in ("good", "bad")
    ]
    report = data.report.train
    assert (report.rows, report.kept, report.examples) == (3, 3, 6)


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
