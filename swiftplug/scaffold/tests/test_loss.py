import pytest
import torch
from torch.nn.functional import cross_entropy

from swiftplug.scaffold.package.loss import GeneralizedCrossEntropy

LOGITS = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(6)


def test_it_is_the_formula_of_the_paper() -> None:
    p = LOGITS.softmax(-1)[range(6), TARGETS]
    for q in (0.3, 0.7, 1.0):
        torch.testing.assert_close(GeneralizedCrossEntropy(q).token_loss(LOGITS, TARGETS), (1 - p**q) / q)


def test_near_zero_it_is_cross_entropy() -> None:
    losses = GeneralizedCrossEntropy(q=1e-4).token_loss(LOGITS, TARGETS)
    torch.testing.assert_close(losses, cross_entropy(LOGITS, TARGETS, reduction="none"), rtol=1e-3, atol=0)


def test_another_q_is_refused() -> None:
    with pytest.raises(ValueError, match="q is 0, expected"):
        GeneralizedCrossEntropy(q=0)
