import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from swiftplug_plugins_example.metric import topk


def test_agrees_with_sorting_the_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 20, generator=generator)
    labels = torch.randint(0, 20, (3, 9), generator=generator)
    labels[torch.rand(3, 9, generator=generator) < 0.4] = -100
    hits = [
        labels[row, position] in np.argsort(-logits[row, position - 1].numpy())[:4]
        for row in range(3)
        for position in range(1, 9)
        if labels[row, position] != -100
    ]
    compute, preprocess = topk(k=4)
    ranks = preprocess(logits, labels)
    assert ranks.shape == labels.shape
    assert compute(EvalPrediction(ranks.numpy(), labels.numpy())) == {"top4_acc": pytest.approx(np.mean(hits))}


def test_all_tokens_are_among_all() -> None:
    compute, preprocess = topk(k=6)
    labels = torch.tensor([[-100, 5, 0]])
    assert compute(EvalPrediction(preprocess(torch.randn(1, 3, 6), labels).numpy(), labels.numpy())) == {"top6_acc": 1}
