"""Batches: an order of the epoch that is complete, repeatable and of little padding, and the tensors of a batch."""

import itertools
import random
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader

from swiftplug.data.batching import Collator, DrawSampler, EpochSampler, Mixture, collate_prompts


def lengths_like_real(count: int, seed: int) -> list[int]:
    return np.minimum(np.random.default_rng(seed).lognormal(5.5, 0.8, count).astype(int) + 1, 2048).tolist()


def batches(order: list[Any], size: int) -> list[list[Any]]:
    return list(BatchSampler(order, size, drop_last=False))


def padding(order: list[int], lengths: list[int], size: int) -> float:
    slots = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches(order, size))
    return 1 - sum(lengths) / slots


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 63, 64, 1000, 1001])
@pytest.mark.parametrize("batch_size", [4, 12])
def test_every_index_once(count: int, grouped: bool, batch_size: int) -> None:
    sampler = EpochSampler(lengths_like_real(count, 0), batch_size, seed=1, group_by_length=grouped)
    assert sorted(sampler) == list(range(count))
    assert len(sampler) == count


@pytest.mark.parametrize("grouped", [True, False])
def test_a_mixture_has_its_shares_in_every_epoch_and_other_examples(grouped: bool) -> None:
    sizes, lengths = [10, 200, 90], lengths_like_real(300, 0)
    mixture = Mixture.by_weight(sizes, [3, 1, 2])
    assert mixture.draws == [150, 50, 100]
    sampler = EpochSampler(lengths, 4, 1, grouped, mixture)
    seen = set()
    for epoch in range(8):
        sampler.set_epoch(epoch)
        times = np.bincount(list(sampler), minlength=300)
        assert times.sum() == len(sampler)
        assert (times[:10] == 15).all()
        assert times[10:210].sum() == 50 and times[10:210].max() == 1
        assert times[210:].sum() == 100 and set(times[210:]) == {1, 2}
        seen |= {*np.flatnonzero(times[10:210]).tolist()}
    assert len(seen) > 150  # 50 of 200, drawn eight times: 180 on average
    first, second = (sampler.set_epoch(epoch) or list(sampler) for epoch in (0, 1))
    assert first != second


def test_rests_of_shares_are_rounded_by_size() -> None:
    assert Mixture.by_weight([5, 5], [1, 2]).draws == [3, 7]
    assert Mixture.by_weight([1, 1, 1], [1, 1, 1]).draws == [1, 1, 1]
    assert Mixture.by_weight([100, 1], [0.001, 1]).draws == [0, 101]


@pytest.mark.parametrize("grouped", [True, False])
def test_datasets_come_one_after_the_other(grouped: bool) -> None:
    sampler = EpochSampler(lengths_like_real(300, 0), 4, 1, grouped, Mixture([10, 200, 90], None))
    order = list(sampler)
    assert [sorted(order[:10]), sorted(order[10:210]), sorted(order[210:])] == [
        [*range(10)],
        [*range(10, 210)],
        [*range(210, 300)],
    ]
    assert order[10:210] != [*range(10, 210)]


@pytest.mark.parametrize("grouped", [True, False])
def test_order_follows_from_seed_and_epoch_alone(grouped: bool) -> None:
    lengths = lengths_like_real(500, 0)

    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(lengths, 4, seed, grouped)
        sampler.set_epoch(epoch)
        return list(sampler)

    first = order(1, 3)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    again = EpochSampler(np.array(lengths), 4, 1, grouped)
    for epoch in range(3):
        again.set_epoch(epoch)
        next(iter(again))
    again.set_epoch(3)
    state = random.getstate(), torch.get_rng_state()
    assert list(again) == first == list(again)
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_grouping_pads_little_and_mixes_lengths() -> None:
    lengths = lengths_like_real(4000, 1)
    grouped = list(EpochSampler(lengths, 8, seed=0))
    plain = list(EpochSampler(lengths, 8, seed=0, group_by_length=False))
    assert padding(plain, lengths, 8) > 0.4
    assert padding(grouped, lengths, 8) < 0.1
    means = [statistics.mean(lengths[i] for i in batch) for batch in batches(grouped, 8)]
    neighbours = np.corrcoef(means[:-1], means[1:])[0, 1]
    assert abs(neighbours) < 0.15, "batches of like length follow each other"


def test_grouped_batches_differ_between_epochs() -> None:
    sampler = EpochSampler(lengths_like_real(4000, 1), 4, seed=0)
    first = {tuple(sorted(batch)) for batch in batches(list(sampler), 4)}
    sampler.set_epoch(1)
    second = {tuple(sorted(batch)) for batch in batches(list(sampler), 4)}
    assert len(first & second) < 100


@pytest.mark.parametrize("seed", range(20))
def test_longest_example_is_in_the_first_batch(seed: int) -> None:
    lengths = lengths_like_real(random.Random(seed).randint(8, 300), seed)
    first = list(itertools.islice(EpochSampler(lengths, 8, seed), 4))
    assert max(lengths[i] for i in first) == max(lengths)


def test_processes_get_batches_of_like_length_at_the_same_time() -> None:
    lengths = lengths_like_real(4000, 2)
    order = list(EpochSampler(lengths, 16, seed=0))
    shards = [
        list(BatchSamplerShard(BatchSampler(order, 4, drop_last=False), num_processes=4, process_index=rank))
        for rank in range(4)
    ]
    ratios = []
    for step in zip(*shards, strict=True):
        widths = [max(lengths[i] for i in batch) for batch in step]
        ratios.append(min(widths) / max(widths))
    assert statistics.mean(ratios) > 0.9
    assert sorted(i for shard in shards for batch in shard for i in batch) == list(range(4000))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("count", [5, 64, 75, 77])
def test_a_step_has_the_same_examples_however_many_share_it(count: int, grouped: bool) -> None:
    order = list(EpochSampler(lengths_like_real(count, 4), 16, seed=0, group_by_length=grouped))

    def steps(processes: int, batch_size: int) -> list[list[int]]:
        """The examples of each step, those of the last without what accelerate repeats to fill it."""
        sampler = BatchSampler(order, batch_size, drop_last=False)
        shards = [[*BatchSamplerShard(sampler, processes, rank)] for rank in range(processes)]
        rounds = [[*itertools.chain(*each)] for each in zip(*shards, strict=True)]
        rounds[-1] = rounds[-1][: (count - 1) % (processes * batch_size) + 1]
        return [sorted(itertools.chain(*group)) for group in batches(rounds, 16 // (processes * batch_size))]

    one = steps(1, 4)
    assert [len(step) for step in one[:-1]] == [16] * (len(one) - 1)
    assert steps(2, 4) == steps(4, 4) == steps(2, 2) == steps(1, 16) == one


def test_lengths_may_be_a_column_of_a_dataset() -> None:
    from datasets import Dataset

    lengths = lengths_like_real(50, 3)
    column = Dataset.from_dict({"length": lengths}).with_format("numpy")["length"]
    assert list(EpochSampler(column, 4, seed=0)) == list(EpochSampler(lengths, 4, seed=0))


def test_pads_on_the_right_to_the_longest() -> None:
    batch = Collator(pad_token_id=9)(
        [
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "length": 3, "reference": "x"},
            {"input_ids": np.array([4], dtype=np.int32), "labels": np.array([4], dtype=np.int32), "length": 1},
        ]
    )
    assert set(batch) == {"input_ids", "labels", "attention_mask", "length"}
    assert batch["length"].tolist() == [3, 1]
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_weights_are_padded_with_zero() -> None:
    rows = [
        {"input_ids": [1, 2], "labels": [-100, 2], "loss_scale": [0.0, 2.5]},
        {"input_ids": [1], "labels": [1], "loss_scale": [0.1]},
    ]
    weights = Collator(0)(rows)["loss_scale"]
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([[0.0, 2.5], [0.1, 0.0]]))


def test_packed_rows_lie_end_to_end() -> None:
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, -100], "loss_scale": [0, 0.5, 0], "position_ids": [0, 1, 0]},
        {"input_ids": [4, 5], "labels": [-100, 5], "loss_scale": [0, 2], "position_ids": [0, 1]},
    ]
    batch = Collator(9)(rows)
    assert set(batch) == {"input_ids", "labels", "loss_scale", "position_ids"}
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [[-100, 2, -100, -100, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 0, 1]]
    assert batch["loss_scale"].tolist() == [[0, 0.5, 0, 0, 2]]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("prompts", "iterations"), [(13, 1), (13, 2), (3, 1)])
def test_prompts_of_a_step_are_the_same_on_any_number_of_processes(
    processes: int, prompts: int, iterations: int
) -> None:
    group, step, batch = 4, 48, 6  # so twelve prompts a step; a group is cut by the edge of a batch
    rows = Dataset.from_dict({"row": range(prompts), "length": [10 + row for row in range(prompts)]})
    sampler = DrawSampler(
        prompts, group=group, step=step, iterations=iterations, processes=processes, batch=batch, seed=3
    )
    sampler.set_epoch(2)
    accumulated = step // (processes * batch)

    def steps(process: int) -> list[list[int]]:
        """The prompts of each step of a process, one for each candidate, as its data loader gives them."""
        shard = BatchSamplerShard(BatchSampler(sampler, batch, drop_last=False), processes, process)
        loader = DataLoader(rows.with_format("numpy"), batch_sampler=shard, collate_fn=collate_prompts)
        batches = [*loader]
        assert all(each["row"].dtype == torch.int64 and len(each["row"]) == batch for each in batches)
        assert all(torch.equal(each["length"], each["row"] + 10) for each in batches)
        assert len(batches) * batch * processes == len(sampler)
        found = [each["row"].tolist() for each in batches]
        return [[*itertools.chain(*found[at : at + accumulated])] for at in range(0, len(found), accumulated)]

    together = [[*itertools.chain(*parts)] for parts in zip(*map(steps, range(processes)), strict=True)]
    # By the definition: a permutation by seed and epoch, filled up from its start.
    order = np.random.default_rng([3, 2]).permutation(prompts).tolist()
    count = -(-prompts * group // step)
    order = (order * 100)[: count * step // group]
    expected = [
        [prompt for prompt in order[at : at + step // group] for _ in range(group)]
        for at in range(0, len(order), step // group)
        for _ in range(iterations)
    ]
    assert together == expected
