"""The order of an epoch: complete, repeatable, and of little padding."""

import itertools
import random
import statistics

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from swiftplug.data.sampler import EpochSampler


def lengths_like_real(count: int, seed: int) -> list[int]:
    return np.minimum(np.random.default_rng(seed).lognormal(5.5, 0.8, count).astype(int) + 1, 2048).tolist()


def batches(order: list[int], size: int) -> list[list[int]]:
    return list(BatchSampler(order, size, drop_last=False))


def padding(order: list[int], lengths: list[int], size: int) -> float:
    slots = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches(order, size))
    return 1 - sum(lengths) / slots


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 63, 64, 1000, 1001])
@pytest.mark.parametrize("processes", [1, 3])
def test_every_index_once(count: int, grouped: bool, processes: int) -> None:
    sampler = EpochSampler(lengths_like_real(count, 0), 4, seed=1, group_by_length=grouped, num_processes=processes)
    assert sorted(sampler) == list(range(count))
    assert len(sampler) == count


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
    first = list(itertools.islice(EpochSampler(lengths, 4, seed, num_processes=2), 4))
    assert max(lengths[i] for i in first) == max(lengths)


def test_processes_get_batches_of_like_length_at_the_same_time() -> None:
    lengths = lengths_like_real(4000, 2)
    order = list(EpochSampler(lengths, 4, seed=0, num_processes=4))
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


def test_lengths_may_be_a_column_of_a_dataset() -> None:
    from datasets import Dataset

    lengths = lengths_like_real(50, 3)
    column = Dataset.from_dict({"length": lengths}).with_format("numpy")["length"]
    assert list(EpochSampler(column, 4, seed=0)) == list(EpochSampler(lengths, 4, seed=0))
