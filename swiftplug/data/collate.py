"""Examples become the tensors of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from swiftplug.plugin.loss import IGNORED_LABEL

Rows = Sequence[Sequence[float] | np.ndarray]


class Collator:
    """Pads examples on the right, to the longest of the batch and no further.

    Packed examples (with `position_ids`) are laid end to end in one row instead: their position ids restart at each
    example, which together with the absence of an attention mask tells the model to keep them apart.

    Args:
        pad_token_id: What fills `input_ids`.

    Example:
        >>> Collator(0)([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}])["input_ids"]
        tensor([[5, 6],
                [7, 0]])
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: Each with `input_ids`, `labels`, and where there are weights `loss_scale`, all of one length.
                Other columns are left out.

        Returns:
            `input_ids` and `labels`, `(B, T)` int64; `loss_scale`, `(B, T)` float32, if the examples have it; and
            `attention_mask`, `(B, T)` int64, or for packed examples `position_ids`, `(1, T)` int64.
        """
        packed = "position_ids" in examples[0]
        lay = _end_to_end if packed else _padded
        batch = {
            "input_ids": lay([example["input_ids"] for example in examples], self.pad_token_id, np.int64),
            "labels": lay([example["labels"] for example in examples], IGNORED_LABEL, np.int64),
        }
        if "loss_scale" in examples[0]:
            batch["loss_scale"] = lay([example["loss_scale"] for example in examples], 0, np.float32)
        if packed:
            batch["position_ids"] = lay([example["position_ids"] for example in examples], 0, np.int64)
        else:
            batch["attention_mask"] = lay([np.ones(len(example["input_ids"])) for example in examples], 0, np.int64)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def _padded(rows: Rows, fill: float, dtype: type) -> np.ndarray:
    array: np.ndarray = np.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


def _end_to_end(rows: Rows, fill: float, dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=dtype) for row in rows])[None]
