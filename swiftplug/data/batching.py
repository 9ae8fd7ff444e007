"""From examples to batches: the order of the examples in an epoch, and the tensors of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from swiftplug.plugin.loss import IGNORED_LABEL

# Number of batches that are sorted by length together. More need less padding, fewer mix better. As in Transformers.
BATCHES_TO_SORT = 50


class EpochSampler(Sampler[int]):
    """Every index once per epoch, in an order that depends only on the seed and the epoch.

    The global random state and earlier draws have no influence, so a resumed run sees the same order as an
    uninterrupted one. A data loader cuts the order into batches of `batch_size` from the front.

    With length grouping, stretches of a random order are sorted by length and cut into batches, and the batches are
    shuffled: little padding, and the micro-batches of one accumulation step still differ in length, as in a plain
    random order. The batch with the longest example comes first, so that a run that needs too much memory fails
    immediately. Processes take batches in turn, and at each step all get batches of about the same length.

    Args:
        lengths: The number of tokens of each example.
        batch_size: Number of examples in a batch of one process.
        seed: The run's seed.
        group_by_length: Whether to group examples of similar length into batches.
        num_processes: Number of processes that share the batches.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int,
        group_by_length: bool = True,
        num_processes: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths[:])  # reads a column of a dataset at once
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length
        self.num_processes = num_processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
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


class Collator:
    """Pads examples on the right, to the length of the longest in the batch.

    Packed examples (with `position_ids`) are concatenated into one row instead. Their position ids restart at each
    example; without an attention mask, that is how the model keeps them apart.

    Args:
        pad_token_id: The padding of `input_ids`.

    Example:
        >>> Collator(0)([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}])["input_ids"]
        tensor([[5, 6],
                [7, 0]])
    """

    def __init__(self, pad_token_id: int) -> None:
        self.padding = {"input_ids": pad_token_id, "labels": IGNORED_LABEL, "loss_scale": 0, "position_ids": 0}

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: Each with `input_ids`, `labels`, and optionally `loss_scale`, all of the same length. Other
                columns are ignored.

        Returns:
            `input_ids` and `labels`, `(B, T)` int64; `loss_scale`, `(B, T)` float32, if the examples have it; and
            `attention_mask`, `(B, T)` int64, or for packed examples `position_ids`, `(1, T)` int64.
        """
        packed = "position_ids" in examples[0]
        lengths = np.array([len(example["input_ids"]) for example in examples])
        # True where the batch holds a token and not padding; packed examples have no padding.
        mask = np.ones((1, lengths.sum()), bool) if packed else np.arange(lengths.max()) < lengths[:, None]
        batch = {}
        for name, fill in self.padding.items():
            if name not in examples[0]:
                continue
            array = np.full(mask.shape, fill, np.float32 if name == "loss_scale" else np.int64)
            array[mask] = np.concatenate([example[name] for example in examples])
            batch[name] = torch.from_numpy(array)
        if not packed:
            batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        return batch
