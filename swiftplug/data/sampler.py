"""The order of examples in an epoch: at random, or at random among batches of about one length."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# Batches that are sorted by length together. More of them pad less, fewer mix better; 50 is what Transformers takes.
BATCHES_TO_SORT = 50


class EpochSampler(Sampler[int]):
    """Every index once an epoch, in an order that follows from the seed and the epoch alone.

    Neither the global random state nor what was drawn before plays a part, so a resumed run sees the order that an
    unbroken one would have. A data loader cuts the order into batches of `batch_size` from the front.

    With length grouping, stretches of a random order are sorted by length and cut into batches, and the batches are
    shuffled: little padding, and the micro-batches of one accumulation step still differ in length, as in a plain
    random order. The batch with the longest example comes first, so that what does not fit into memory fails at once.
    Several processes, which take batches in turn, all get one of about the same length at a time.

    Args:
        lengths: The number of tokens of each example.
        batch_size: Examples in a batch of one process.
        seed: The run's seed.
        group_by_length: Whether to make batches of about one length.
        num_processes: Processes that share the batches.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int,
        group_by_length: bool = True,
        num_processes: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths[:])  # a column of a dataset is read whole, not one by one
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length
        self.num_processes = num_processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        if self.group_by_length and len(order):
            order = self._grouped(order, generator)
        return iter(order.tolist())

    def _grouped(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        lengths = self.lengths[order]
        longest = int(lengths.argmax())
        order[[0, longest]] = order[[longest, 0]]
        group = self.batch_size * self.num_processes
        full = len(order) - len(order) % group
        stretch = np.arange(full) // (group * BATCHES_TO_SORT)
        by_length = np.lexsort((-self.lengths[order[:full]], stretch))
        groups = order[:full][by_length].reshape(-1, group)
        groups[1:] = generator.permutation(groups[1:])
        rest = order[full:]
        return np.concatenate([groups.reshape(-1), rest[np.argsort(-self.lengths[rest], kind="stable")]])
