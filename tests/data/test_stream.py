"""Streamed training data: the rows of the files, window by window, and exactly the same ones after a resume."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from swiftplug.data.prepare import PreparedData
from swiftplug.errors import UserError

WINDOW = 16


def rows_of(count: int, name: str = "q") -> list[dict[str, Any]]:
    turns = [(f"{name}{number}", "a" * (number % 7 + 1)) for number in range(count)]
    return [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]


def tokens(examples: Any) -> list[list[int]]:
    return [example["input_ids"].tolist() for example in examples]


@pytest.fixture
def places(write_jsonl: Any, tmp_path: Path) -> dict[str, list[str]]:
    """By what it is to show, datasets of 50 rows."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for start in range(0, 50, 20):
        Dataset.from_list(rows_of(50)[start : start + 20]).to_parquet(str(folder / f"train-{start:02}.parquet"))
    file = str(write_jsonl(rows_of(50), "rows.jsonl"))
    return {
        "file": [file],
        "shards": [str(folder)],
        "plugin": ["streamed_rows"],
        "shuffled": ["shuffled_rows"],
        "limit": [f"{folder}#50"],
        "order": [f"{file}#20", str(write_jsonl(rows_of(50)[20:], "others.jsonl"))],
        "weights": [f"{folder}#20", str(write_jsonl(rows_of(7, "w"), "few.jsonl"))],
    }


@pytest.fixture
def stream(prepare: Callable[..., PreparedData], places: dict[str, list[str]]) -> Callable[..., Any]:
    def start(what: str, **options: Any) -> Any:
        mix = {"order": {"mix": "order"}, "weights": {"mix": [3.0, 1.0]}}.get(what, {})
        data = prepare(*places[what], streaming=True, shuffle_buffer=WINDOW, **mix, **options)
        assert data.stream is not None
        data.stream.batch_size = 4
        return data

    return start


@pytest.mark.parametrize("what", ["file", "shards", "plugin", "limit", "order"])
def test_every_row_comes_once_in_each_pass(stream: Any, prepare: Any, places: dict[str, list[str]], what: str) -> None:
    expected = tokens(prepare(*places["file"]).train)
    data = stream(what)
    assert sorted(tokens(data.train)) == sorted(expected[:WINDOW])
    found = tokens(islice(data.stream, 8 * 50))  # where both a pass and a window end
    assert sorted(found[:WINDOW]) == sorted(expected[:WINDOW]) and found[:WINDOW] != expected[:WINDOW]
    assert sorted(found) == sorted(8 * expected)
    assert data.report.train.rows == 8 * 50


def test_each_window_has_the_shares_of_the_weights(stream: Any, tokenizer: Any) -> None:
    texts = [tokenizer.decode(ids) for ids in tokens(islice(stream("weights").stream, 5 * WINDOW))]
    counts = [sum("q" in text for text in texts[at : at + WINDOW]) for at in range(0, 5 * WINDOW, WINDOW)]
    assert counts == [12] * 5
    assert all(2 <= sum(f"w{number}" in text for text in texts) <= 3 for number in range(7))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("what", ["file", "shards", "plugin", "shuffled", "limit", "order", "weights"])
def test_a_stream_goes_on_exactly(stream: Any, tmp_path: Path, what: str, packing: bool) -> None:
    options = {"packing": True, "max_length": 64} if packing else {}
    unbroken = tokens(islice(stream(what, **options).stream, 90))
    data = stream(what, **options)
    broken, source = data.stream, data.source
    iterator, done = iter(broken), 0
    for trained in (1, 16, 17, 50, 51):
        ahead = [*islice(iterator, trained - done + 3)]  # a data loader is some examples ahead
        assert tokens(ahead) == unbroken[done : trained + 3]
        assert [*islice(source.read(), 3)]  # as the page does
        broken.save(tmp_path, trained)
        data = stream(what, **options)
        broken, source = data.stream, data.source
        broken.load(tmp_path)
        iterator, done = iter(broken), trained
    assert tokens(islice(iterator, 90 - done)) == unbroken[done:]


def test_the_order_follows_from_the_seed(stream: Any) -> None:
    first, again, other = (tokens(islice(stream("file", seed=seed).stream, 60)) for seed in (1, 1, 2))
    assert first == again != other


def test_rows_that_cannot_be_used_are_counted_as_they_come(stream: Any, prepare: Any, write_jsonl: Any) -> None:
    odd: list[Any] = rows_of(20)
    odd[18] = {"messages": [{"role": "user", "content": "?"}]}
    data = prepare(write_jsonl(odd, "odd.jsonl"), streaming=True, shuffle_buffer=WINDOW)
    assert not data.report.train.dropped
    assert len(tokens(islice(data.stream, 20))) == 20
    assert data.report.train.dropped["no answer"].count == 1
    assert (
        data.report.lines()[-1] == "train is streamed: above are the first 16 rows, others are read as they are needed"
    )
    for rows, message in (([], "empty"), ([{"text": 3}], "none usable")):
        with pytest.raises(UserError, match=message):
            prepare(write_jsonl(rows, "bad.jsonl"), streaming=True, shuffle_buffer=WINDOW)
    heavy = [*rows_of(20), {"messages": [*rows_of(1)[0]["messages"][:1], {"role": "assistant", "content": "heavy"}]}]
    late = prepare(write_jsonl(heavy, "heavy.jsonl"), streaming=True, shuffle_buffer=WINDOW, loss_scale="by_word")
    with pytest.raises(UserError, match="tokens behind row 16 have weights other than 0 and 1"):
        tokens(islice(late.stream, 30))
