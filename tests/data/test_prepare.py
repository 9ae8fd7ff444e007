"""The data of a run from its datasets: every row encoded, split, packed or counted."""

import datetime
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from swiftplug.builtin.tasks.language import Pretraining, SupervisedFineTuning
from swiftplug.data import prepare as prepare_module
from swiftplug.data.batching import Collator
from swiftplug.data.prepare import map_chunks
from swiftplug.errors import UserError

PT, SFT = Pretraining(), SupervisedFineTuning()


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


def ids_of(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> list[int]:
    return tokenizer.apply_chat_template(row["messages"], return_dict=False)


def test_examples_are_the_rows_in_order(prepare: Any, write_jsonl: Any, tokenizer: Any) -> None:
    first = [chat("你好 👋", f"Hello {i}.") for i in range(300)]
    second = [chat("q", "a", "r", f"b {i}") for i in range(300)]
    data = prepare(f"{write_jsonl(first, 'first.jsonl')}#290", write_jsonl(second, "second.jsonl"))
    expected = [ids_of(tokenizer, row) for row in first[:290] + second]
    assert [example["input_ids"].tolist() for example in data.train] == expected
    assert data.train.column_names == ["input_ids", "labels", "length"]
    assert data.train["length"][:].tolist() == [len(ids) for ids in expected]
    assert data.eval is None
    report = data.report.train
    assert (report.rows, report.kept, report.examples) == (590, 590, 590)
    assert report.tokens == sum(map(len, expected))
    assert report.longest == max(map(len, expected))
    assert report.trained_tokens == sum(int((example["labels"][1:] != -100).sum()) for example in data.train)
    batch = Collator(0)([data.train[0], data.train[400]])
    assert batch["input_ids"][0, : len(expected[0])].tolist() == expected[0]


def test_what_becomes_of_every_row_is_reported(prepare: Any, write_jsonl: Any) -> None:
    rows = [
        chat("q", "a"),
        chat("q"),
        {"question": "q"},
        chat("q", "x" * 500),
        chat("q", ""),
        chat("q", "b"),
        *[chat("q")] * 4,
    ]
    path = write_jsonl(rows)
    data = prepare(path, max_length=100)
    report = data.report.train
    assert (report.rows, report.kept, len(data.train)) == (10, 2, 2)
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == {
        "no answer": 5,
        "no known columns": 1,
        "longer than max_length": 1,
        "the answer is empty": 1,
    }
    assert [example.split(" ")[0] for example in report.dropped["no answer"].examples] == [
        f"{path}:{n}" for n in (2, 7, 8)
    ]
    lines = data.report.lines()
    assert lines[0].startswith("train: 2 of 10 rows, ")
    assert lines[1].startswith(f"  5 rows left out: no answer: {path}:2 (the last message is 'user'")
    assert lines[1].endswith(", ...")
    assert lines[-1] == f"encoded rows: {Path(data.train.cache_files[0]['filename']).parent}"
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(("too_long", "examples", "word"), [("truncate", 2, "truncated"), ("split", 6, "split")])
def test_long_rows_are_cut(
    prepare: Any, write_jsonl: Any, tokenizer: Any, too_long: str, examples: int, word: str
) -> None:
    rows = [chat("q", "a" * 200), chat("q", "b")]
    data = prepare(write_jsonl(rows), max_length=50, too_long=too_long)
    long, short = (ids_of(tokenizer, row) for row in rows)
    parts = [long[start : start + 50] for start in range(0, len(long), 50)]
    expected = [*(parts if too_long == "split" else parts[:1]), short]
    assert [example["input_ids"].tolist() for example in data.train] == expected
    assert len(data.train) == examples
    assert f"  1 row {word}" in data.report.lines()


def test_pt_splits_and_ends_texts(prepare: Any, write_jsonl: Any, tokenizer: Any) -> None:
    text = "長い話。" * 20
    data = prepare(write_jsonl([{"text": text}, {"text": "short"}]), task=PT, max_length=64)
    ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    joined = [token for example in data.train for token in example["input_ids"].tolist()]
    assert joined == [*ids, *tokenizer("short").input_ids, tokenizer.eos_token_id]
    assert all((example["labels"] == example["input_ids"]).all() for example in data.train)


def test_weights_are_a_column_only_where_there_are_any(prepare: Any, write_jsonl: Any) -> None:
    light = write_jsonl([chat("q", "light")] * 3, "light.jsonl")
    heavy = write_jsonl([chat("q", "heavy")] * 2, "heavy.jsonl")
    data = prepare(light, eval_dataset=[light], loss_scale="by_word")
    assert "loss_scale" not in data.train.column_names + data.eval.column_names
    data = prepare(light, eval_dataset=[heavy], loss_scale="by_word")
    assert "loss_scale" in data.train.column_names
    assert set(data.train[0]["loss_scale"]) == {0, 1}
    assert set(data.eval[0]["loss_scale"]) == {0, 2.5}
    for example in [*data.train, *data.eval]:
        assert ((example["loss_scale"] == 0) == (example["labels"] == -100)).all()
    data = prepare(heavy, loss_scale="by_word", packing=True, max_length=100)
    assert len(data.train) == 1
    assert set(data.train[0]["loss_scale"]) == {0, 2.5}


def test_packing_packs_the_training_examples_only(prepare: Any, write_jsonl: Any, tokenizer: Any) -> None:
    rows = [chat("q", "a" * (n % 7 + 1)) for n in range(40)]
    path = write_jsonl(rows)
    data = prepare(path, eval_dataset=[path], packing=True, max_length=200)
    examples = sorted(tuple(ids_of(tokenizer, row)) for row in rows)
    found = []
    for row in data.train:
        starts = np.flatnonzero(row["position_ids"] == 0).tolist()
        found += [tuple(row["input_ids"][a:b].tolist()) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert sorted(found) == examples
    assert max(data.train["length"][:]) <= 200
    assert len(data.train) < 15
    assert "position_ids" not in data.eval.column_names
    assert len(data.eval) == 40
    assert f"  packed into {len(data.train)} rows" in data.report.lines()


@pytest.mark.parametrize(("val_size", "held"), [(0.25, 10), (3, 3), (0.05, 2)])
def test_rows_are_held_out(prepare: Any, write_jsonl: Any, val_size: float, held: int) -> None:
    path = write_jsonl([chat("q", f"answer {n}") for n in range(40)])

    def split(**given: Any) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        data = prepare(path, val_size=val_size, **given)
        return [tuple(e["input_ids"]) for e in data.train], [tuple(e["input_ids"]) for e in data.eval]

    train, evaluation = split()
    assert (len(train), len(evaluation)) == (40 - held, held)
    everything = [tuple(e["input_ids"]) for e in prepare(path).train]
    assert sorted(train + evaluation) == sorted(everything)
    assert [ids for ids in everything if ids in set(train)] == train, "the order is kept"
    assert split() == (train, evaluation)
    assert split(max_length=1000) == (train, evaluation)
    assert split(seed=1)[1] != evaluation


def test_an_eval_dataset_goes_before_a_share(prepare: Any, write_jsonl: Any) -> None:
    path = write_jsonl([chat("q", f"answer {n}") for n in range(10)])
    data = prepare(path, eval_dataset=[f"{path}#3"], val_size=0.5)
    assert (len(data.train), len(data.eval)) == (10, 3)


def test_generating_evaluation_has_prompts(prepare: Any, write_jsonl: Any, tokenizer: Any) -> None:
    row = chat("q", "a", "你好", "b 👋")
    path = write_jsonl([row])
    data = prepare(path, eval_dataset=[path], generation=True)
    prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=False)
    assert data.eval[0]["prompt_ids"].tolist() == prompt
    assert data.eval[0]["reference"] == "b 👋"
    assert "prompt_ids" not in data.train.column_names


def test_several_processes_give_the_same(prepare: Any, write_jsonl: Any, tmp_path: Path) -> None:
    rows = [chat("q", "heavy" * (n % 5 + 1)) if n % 9 else chat("q") for n in range(1500)]
    path = write_jsonl(rows)
    one = prepare(path, loss_scale="by_word")
    three = prepare(path, loss_scale="by_word", num_proc=3, cache_dir=str(tmp_path / "other"))
    assert three.train.with_format(None)[:] == one.train.with_format(None)[:]
    assert three.report == one.report


def test_long_texts_are_tokenized_few_at_a_time(
    prepare: Any, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"text": "x" * length} for length in (5, 30, 3, 3, 3, 40, 1)] + [{"text": ""}]
    path = write_jsonl(rows)
    whole = prepare(path, task=PT)
    monkeypatch.setattr("swiftplug.data.encode.BATCH_CHARACTERS", 10)
    parts = prepare(path, task=PT, cache_dir=str(tmp_path / "other"))
    assert parts.train.with_format(None)[:] == whole.train.with_format(None)[:]
    assert parts.report == whole.report


def test_mistakes_of_a_plugin_cross_processes(prepare: Any, write_jsonl: Any, tmp_path: Path) -> None:
    path = write_jsonl([chat("q", "broken" if n == 300 else "a") for n in range(600)])
    for num_proc in (1, 2):
        with pytest.raises(UserError, match=rf"{path}:301: .*"):
            prepare(path, loss_scale="by_word", num_proc=num_proc)
    assert list((tmp_path / "cache").glob("*.part")) == []


def test_a_template_that_writes_the_date_is_rendered_anew_each_day(
    prepare: Any, write_jsonl: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write_jsonl([chat("q", "a")])

    def entries() -> int:
        prepare(path)
        return sum(each.is_dir() for each in (tmp_path / "cache").iterdir())

    def tomorrow() -> None:
        class Tomorrow(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:
                return datetime.date(2100, 1, 1)

        monkeypatch.setattr("swiftplug.data.prepare.date", Tomorrow)

    assert entries() == 1
    tomorrow()
    assert entries() == 1
    monkeypatch.undo()
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template + "{{ strftime_now('%d') }}")
    assert entries() == entries() == 2
    tomorrow()
    assert entries() == 3


def test_columns_are_renamed(prepare: Any, write_jsonl: Any) -> None:
    path = write_jsonl([{"question": "q", "answer": "a"}])
    assert len(prepare(path, columns={"question": "prompt", "answer": "completion"}).train) == 1
    with pytest.raises(UserError, match=r"data\.columns: no dataset has a column 'qestion'; did you mean 'question'\?"):
        prepare(path, columns={"qestion": "prompt"})


def test_data_that_cannot_be_used(prepare: Any, write_jsonl: Any, tmp_path: Path, tokenizer: Any) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    good = write_jsonl([chat("q", "abc"), chat("q", "a")])
    shortest = len(ids_of(tokenizer, chat("q", "a")))
    with pytest.raises(UserError, match=r"empty\.jsonl: the dataset is empty$"):
        prepare(good, empty)
    with pytest.raises(UserError, match=r"3 rows, none usable: no answer \(2 rows\): .*bad\.jsonl:1 \(the last"):
        prepare(write_jsonl([chat("q"), chat("q"), {"a": 1}], "bad.jsonl"))
    with pytest.raises(
        UserError,
        match=rf"^data\.max_length: 8 is shorter than every usable row of .*; the shortest has {shortest} tokens",
    ):
        prepare(good, max_length=8)
    with pytest.raises(UserError, match=r"^data\.val_size: 5 holds out 5 of 2 rows; expected 1 to 1$"):
        prepare(good, val_size=5)
    with pytest.raises(UserError, match=r"broken\.jsonl:2: not JSON"):
        broken = tmp_path / "broken.jsonl"
        broken.write_text(good.read_text().splitlines()[0] + "\n{'messages': []}\n")
        prepare(broken)
    with pytest.raises(UserError, match=r"^eval_dataset: no such file"):
        prepare(good, eval_dataset=[tmp_path / "tets.jsonl"])
    assert list((tmp_path / "cache").glob("*.part")) == []


def test_of_prompt_and_completion_only_the_completion_trains(prepare: Any, write_jsonl: Any, tokenizer: Any) -> None:
    prompt, completion = chat("q", "a", "r")["messages"], [{"role": "assistant", "content": "b"}]
    data = prepare(write_jsonl([{"prompt": prompt, "completion": completion}]))
    [example] = data.train
    assert example["input_ids"].tolist() == tokenizer.apply_chat_template(prompt + completion, return_dict=False)
    before = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))
    trained = example["labels"] != -100
    assert not trained[:before].any()
    assert trained[before : before + 2].all()
    text = prepare(write_jsonl([{"prompt": prompt, "completion": completion}]), task=PT)
    assert (text.train[0]["labels"] != -100).all()


def test_keys_that_nothing_reads_are_counted_once_for_both_splits(prepare: Any, write_jsonl: Any) -> None:
    rows = [
        chat("q", f"a {i}") | {"foo": 0, "id": i, "note": [] if i else None, "renamed": "Be kind."} for i in range(12)
    ]
    rows[3]["bar"] = {"a": 1}
    data = prepare(write_jsonl(rows), val_size=2, columns={"renamed": "system"})
    again = prepare(write_jsonl(rows), val_size=2, columns={"renamed": "system"})
    for report in data.report, again.report:
        assert report.lines()[2] == "12 rows have `foo`, `id`, 1 row has `bar`: not read"
    assert "not read" not in " ".join(prepare(write_jsonl([chat("q", "a")])).report.lines())


def test_datasets_that_are_mixed_are_encoded_once_whatever_their_weights(
    prepare: Any, write_jsonl: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [chat(f"few {i}", "a") for i in range(3)]
    many = [chat(f"many {i}", "b " * i) for i in range(1, 10)]
    places = write_jsonl(few, "few.jsonl"), write_jsonl(many, "many.jsonl")
    data = prepare(*places, mix=[1, 1])
    assert [example["input_ids"].tolist() for example in data.train] == [ids_of(tokenizer, row) for row in few + many]
    assert data.mixture == ([3, 9], [6, 6])
    assert data.report.lines()[-2:] == [
        f"each epoch: 50% from {places[0]}, 6 drawn of 3 examples",
        f"each epoch: 50% from {places[1]}, 6 drawn of 9 examples",
    ]
    assert (data.report.train.rows, data.report.train.examples) == (12, 12)
    assert data.report.fingerprints() != prepare(*places[::-1], mix=[1, 1]).report.fingerprints()

    monkeypatch.setattr(prepare_module, "_encode", None)  # nothing is encoded a second time
    assert prepare(*places, mix=[1, 5]).mixture.draws == [2, 10]
    assert prepare(*places, mix="order").mixture == ([3, 9], None)
    assert prepare(*places, mix_temperature=1.0).mixture.draws == [3, 9]
    assert prepare(*places, mix_temperature=2.0).mixture.draws == [4, 8]  # 12 * 3**.5 / (3**.5 + 9**.5) = 4.39
    with pytest.raises(UserError, match=r"data.mix: .*few.jsonl gets 0.99% of 12 examples, which is none"):
        prepare(*places, mix=[0.01, 1])


def test_datasets_that_are_mixed_are_packed_and_held_out_apart(prepare: Any, write_jsonl: Any) -> None:
    places = [write_jsonl([chat(f"{name} {i}", "a") for i in range(20)], f"{name}.jsonl") for name in ("one", "two")]
    data = prepare(*places, mix=[3, 1], packing=True, max_length=64, val_size=0.2)
    assert len(data.eval) == 8
    assert data.report.train.packed_rows == len(data.train) == sum(data.mixture.sizes)
    assert data.report.train.examples == 32
    alone = prepare(places[0], packing=True, max_length=64, val_size=0.2)
    assert [row["input_ids"].tolist() for row in alone.train] == [
        row["input_ids"].tolist() for row in data.train.select(range(data.mixture.sizes[0]))
    ]


def test_no_process_that_encodes_outlives_a_run_that_is_killed() -> None:
    end, held = os.pipe()  # it ends when no process holds it any more

    def encode(chunk: list[Any]) -> Any:
        os.write(held, b"w")
        time.sleep(100)

    rows: Any = iter(range(2000))
    process = multiprocessing.get_context("fork").Process(target=lambda: list(map_chunks(encode, rows, 2)))
    process.start()
    os.close(held)
    assert os.read(end, 1) + os.read(end, 1) == b"ww"
    process.kill()
    process.join()
    assert os.read(end, 1) == b""
    os.close(end)


def test_few_rows_are_encoded_in_this_process() -> None:
    def encode(chunk: list[Any]) -> Any:
        return os.getpid(), len(chunk)

    def processes(count: int) -> set[Any]:
        rows: Any = iter(range(count))
        done: list[Any] = list(prepare_module.map_chunks(encode, rows, 2))
        assert sum(size for _, size in done) == count
        return {process for process, _ in done}

    few = prepare_module.CHUNK * prepare_module.CHUNKS_ALONE
    assert processes(few) == {os.getpid()}
    assert os.getpid() not in processes(few + prepare_module.CHUNK // 8)


@pytest.mark.parametrize("num_proc", [1, 2])
def test_rows_are_read_once_and_no_faster_than_they_are_encoded(num_proc: int) -> None:
    """So that 20,000 rows take no more memory than a few chunks do."""
    read = 0

    def rows() -> Any:
        nonlocal read
        while read < 20_000:
            read += 1
            yield read

    def encode(chunk: list[Any]) -> Any:
        return chunk

    seen: list[Any] = []
    most = 0
    for chunk in prepare_module.map_chunks(encode, rows(), num_proc):
        most = max(most, read - len(seen))
        seen += chunk
    assert seen == [*range(1, 20_001)]
    ahead = 1 if num_proc == 1 else prepare_module.CHUNKS_ALONE + prepare_module.CHUNKS_AHEAD * num_proc
    assert most <= prepare_module.CHUNK * (ahead + 2)
