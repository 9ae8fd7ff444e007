"""From examples to batches: the order of the examples in an epoch, and the tensors of a batch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.utils.data import Sampler

from swiftplug.data.encode import SECOND
from swiftplug.plugin.loss import IGNORED_LABEL

# Number of batches that are sorted by length together. More need less padding, fewer mix better. As in Transformers.
BATCHES_TO_SORT = 50


class Mixture(NamedTuple):
    """How several datasets, whose examples stand one after the other, make an epoch.

    Attributes:
        sizes: Number of examples of each dataset.
        draws: Number of examples to draw of each in an epoch; None takes all, one dataset after the other.
    """

    sizes: Sequence[int]
    draws: Sequence[int] | None

    @classmethod
    def by_weight(cls, sizes: Sequence[int], weights: Sequence[float]) -> Self:
        """As many draws as there are examples, shared out by weight; what rounding leaves goes to the largest rests."""
        exact = np.array(weights) / sum(weights) * sum(sizes)
        draws = np.floor(exact).astype(int)
        draws[np.argsort(draws - exact, kind="stable")[: sum(sizes) - draws.sum()]] += 1
        return cls(sizes, draws.tolist())


class EpochSampler(Sampler[int]):
    """Every index once per epoch, in an order that depends only on the seed and the epoch.

    Of a mixture, each epoch has a new draw: all examples of a dataset as often as they fit into its share, and for the
    rest of it some of them at random.

    The global random state and earlier draws have no influence, so a resumed run sees the same order as an
    uninterrupted one. A data loader cuts the order into steps of `batch_size` from the front.

    With length grouping, stretches of a random order are sorted by length and cut into steps, and the steps are
    shuffled. However many processes and micro-batches share a step, each gets neighbours in its order: little padding,
    and all processes are busy for about as long. The step with the longest example comes first, so that a run that
    needs too much memory fails immediately.

    Args:
        lengths: The number of tokens of each example.
        batch_size: Number of examples in a step, over all its micro-batches and processes.
        seed: The run's seed.
        group_by_length: Whether to group examples of similar length into steps.
        mixture: How several datasets make an epoch; None takes all their examples alike.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int,
        group_by_length: bool = True,
        mixture: Mixture | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths[:])  # reads a column of a dataset at once
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length
        self.mixture = mixture or Mixture([len(self.lengths)], None)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        for order in self._parts(generator):
            grouped = self._grouped(order, generator) if self.group_by_length and len(order) else order
            yield from grouped.tolist()

    def _parts(self, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """What the epoch has one after the other, each part in random order."""
        sizes, draws = self.mixture
        starts = np.cumsum([0, *sizes[:-1]])
        if draws is None:
            for start, size in zip(starts, sizes, strict=True):
                yield start + generator.permutation(size)
            return
        drawn = [
            start
            + np.concatenate([np.tile(np.arange(size), count // size), generator.permutation(size)[: count % size]])
            for start, size, count in zip(starts, sizes, draws, strict=True)
        ]
        yield generator.permutation(np.concatenate(drawn))

    def _grouped(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        lengths = self.lengths[order]
        longest = int(lengths.argmax())
        order[[0, longest]] = order[[longest, 0]]
        full = len(order) - len(order) % self.batch_size
        stretch = np.arange(full) // (self.batch_size * BATCHES_TO_SORT)
        by_length = np.lexsort((-self.lengths[order[:full]], stretch))
        steps = order[:full][by_length].reshape(-1, self.batch_size)
        steps[1:] = generator.permutation(steps[1:])
        rest = order[full:]
        return np.concatenate([steps.reshape(-1), rest[np.argsort(-self.lengths[rest], kind="stable")]])


class DrawSampler(Sampler[int]):
    """The prompt of each candidate of a run that draws them, in an order that depends only on the seed and the epoch.

    Each prompt occurs once per epoch, as often as it has candidates. Every step is full: that at the end of an epoch is
    filled up with its first prompts, which get other candidates there. A data loader gives its processes batches in
    turn; the order is such that each process has whole groups in a step, and that process 0 has the first ones.

    Args:
        prompts: Number of prompts.
        group: Number of candidates of each.
        step: Number of candidates in a step, over all its micro-batches and processes.
        iterations: Number of optimizer steps that are taken with the same candidates.
        processes: Number of processes.
        batch: Number of candidates in a micro-batch.
        seed: The run's seed.
    """

    def __init__(
        self, prompts: int, *, group: int, step: int, iterations: int, processes: int, batch: int, seed: int
    ) -> None:
        self.prompts = prompts
        self.group = group
        self.steps = -(-prompts * group // step)
        self.iterations = iterations
        self.shape = processes, step // (processes * batch), batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.iterations * math.prod(self.shape)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.prompts)
        order = np.resize(order, self.steps * math.prod(self.shape) // self.group).repeat(self.group)
        # From (process, micro-batch) to the order in which a data loader hands out batches.
        steps = order.reshape(self.steps, *self.shape).swapaxes(1, 2).reshape(self.steps, -1)
        return iter(steps.repeat(self.iterations, axis=0).reshape(-1).tolist())


REFERENCE_LOGPS = "reference_logps"

# What a row has besides tokens: one value, or one for each class or conversation; a label has a type of its own.
FACTS: dict[str, Any] = {
    "length": np.int64,
    "margin": np.float32,
    "rating": np.bool_,
    "label": None,
    REFERENCE_LOGPS: np.float32,
}


def collate_prompts(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The batch of examples of an online task, from which candidates are drawn: `row` and `length`, `(B,)` int64."""
    return {name: torch.tensor([int(example[name]) for example in examples]) for name in ("row", "length")}


class Collator:
    """Pads examples on the right, to the length of the longest in the batch.

    Packed examples (with `position_ids`) are concatenated into one row instead. Their position ids restart at each
    example; without an attention mask, that is how the model keeps them apart. Of examples with two conversations, all
    the second ones (the columns that begin with `second_`) come after all the first ones.

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
            examples: Each with `input_ids`, and optionally `labels` and `loss_scale`, all of the same length; and
                optionally what `FACTS` names. Other columns are ignored.

        Returns:
            For B examples with N conversations `input_ids` and `labels`, `(N, T)` int64; `loss_scale`, `(N, T)`
            float32, if the examples have it; `attention_mask`, `(N, T)` int64, or for packed examples `position_ids`,
            `(1, T)` int64; and `length` and other facts, `(B, ...)`.
        """
        batch = {
            name: torch.from_numpy(np.stack([example[name] for example in examples], dtype=dtype))
            for name, dtype in FACTS.items()
            if name in examples[0]
        }
        if f"{SECOND}input_ids" in examples[0]:
            seconds = [{name: example[f"{SECOND}{name}"] for name in ("input_ids", "labels")} for example in examples]
            examples = [*examples, *seconds]
        packed = "position_ids" in examples[0]
        lengths = np.array([len(example["input_ids"]) for example in examples])
        # True where the batch holds a token and not padding; packed examples have no padding.
        mask = np.ones((1, lengths.sum()), bool) if packed else np.arange(lengths.max()) < lengths[:, None]
        for name, fill in self.padding.items():
            if name not in examples[0]:
                continue
            array = np.full(mask.shape, fill, np.float32 if name == "loss_scale" else np.int64)
            array[mask] = np.concatenate([example[name] for example in examples])
            batch[name] = torch.from_numpy(array)
        if not packed:
            batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        return batch
