"""Batches: padded no further than they must be, or end to end where examples are packed."""

import numpy as np
import torch

from swiftplug.data.collate import Collator


def test_pads_on_the_right_to_the_longest() -> None:
    batch = Collator(pad_token_id=9)(
        [
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "length": 3, "reference": "x"},
            {"input_ids": np.array([4], dtype=np.int32), "labels": np.array([4], dtype=np.int32), "length": 1},
        ]
    )
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
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
