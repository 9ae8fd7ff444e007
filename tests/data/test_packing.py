"""Packing: every example once, whole, in order of its tokens, in few rows, and apart from the others."""

import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from swiftplug.data.batching import Collator
from swiftplug.data.packing import pack, packed_batches


def random_table(lengths: list[int], seed: int, chunk: int, weighted: bool) -> pa.Table:
    random_ = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for length in lengths:
        ids = [random_.randint(3, 200) for _ in range(length)]
        labels = [token if random_.random() < 0.6 else -100 for token in ids]
        row: dict[str, Any] = {"input_ids": ids, "labels": labels, "length": length}
        if weighted:
            row["loss_scale"] = [0.0 if label == -100 else 0.5 for label in labels]
        rows.append(row)
    integers, weights = pa.list_(pa.int32()), pa.list_(pa.float32())
    fields = [("input_ids", integers), ("labels", integers), ("length", pa.int32())]
    schema = pa.schema([*fields, ("loss_scale", weights)] if weighted else fields)
    batches = [pa.RecordBatch.from_pylist(rows[i : i + chunk], schema) for i in range(0, len(rows), chunk)]
    return pa.Table.from_batches(batches).slice(0)


@pytest.mark.parametrize("seed", range(30))
def test_every_example_once_and_no_row_too_long(seed: int) -> None:
    random_ = random.Random(seed)
    max_length = random_.randint(1, 200)
    lengths = [random_.randint(1, max_length) for _ in range(random_.randint(1, 300))]
    rows = pack(lengths, max_length)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= max_length for row in rows)
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(rows) < 2 or filled[0] + filled[1] > max_length, "two rows would have fitted into one"
    assert rows == pack(lengths, max_length)


def test_real_lengths_fill_rows() -> None:
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 0.8, 20_000).astype(int) + 1, 2048)
    assert len(pack(lengths, 2048)) <= 1.005 * math.ceil(lengths.sum() / 2048)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_their_examples_unchanged(seed: int, weighted: bool) -> None:
    lengths = [random.Random(seed).randint(1, 40) for _ in range(700)]
    table = random_table(lengths, seed, chunk=97, weighted=weighted).slice(3)
    examples = {tuple(row["input_ids"]): row for row in table.to_pylist()}
    rows = pa.Table.from_batches(packed_batches(table, 64)).to_pylist()
    found = 0
    for row in rows:
        assert row["length"] == len(row["input_ids"]) <= 64
        starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], row["length"]], strict=True):
            example = examples[tuple(row["input_ids"][start:end])]
            found += 1
            assert row["position_ids"][start:end] == list(range(end - start))
            assert row["labels"][start:end] == [-100, *example["labels"][1:]]
            if weighted:
                assert row["loss_scale"][start:end] == [0.0, *example["loss_scale"][1:]]
    assert found == table.num_rows
    assert ("loss_scale" in rows[0]) == weighted


def test_packed_examples_give_what_each_gives_alone(tiny_model_dir: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    table = random_table([9, 1, 14, 6, 11, 3], seed=1, chunk=4, weighted=False)
    packed = Collator(0)(pa.Table.from_batches(packed_batches(table, 24)).to_pylist())
    padded = Collator(0)(table.to_pylist())

    def loss_and_count(batch: dict[str, torch.Tensor]) -> tuple[float, int]:
        labels = batch["labels"]
        with torch.no_grad():
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            logits = model(**inputs, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        return losses.item(), int((labels[:, 1:] != -100).sum())

    assert loss_and_count(packed)[1] == loss_and_count(padded)[1]
    assert loss_and_count(packed)[0] == pytest.approx(loss_and_count(padded)[0], rel=1e-5)
