from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swiftplug_plugins_example.loss import custom_loss


def by_the_paper(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, z: float) -> float:
    """The sum of weight * (log Z - logit of the target + z * log(Z)^2), token by token."""
    total = 0.0
    for row, targets, scale in zip(logits, labels, weights, strict=True):
        for position in range(1, len(targets)):
            if targets[position] != -100:
                scores = row[position - 1]
                log_z = np.log(np.exp(scores).sum())
                total += scale[position] * (log_z - scores[targets[position]] + z * log_z**2)
    return total


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([[-100, 3, 1, -100, 6], [-100, -100, 0, 2, -100]])
    return torch.randn(2, 5, 7, generator=generator) * 3, labels, torch.rand(2, 5, generator=generator) * 2


@pytest.mark.parametrize("z", [0.0, 1e-4, 0.5])
def test_is_the_formula_of_the_paper(batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], z: float) -> None:
    logits, labels, weights = batch
    loss = custom_loss(SimpleNamespace(logits=logits), labels, weights, 11, z=z)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(by_the_paper(logits.numpy(), labels.numpy(), weights.numpy(), z) / 11, rel=1e-5)


def test_without_a_count_it_is_the_mean_over_trained_tokens(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    logits, labels, _ = batch
    loss = custom_loss(SimpleNamespace(logits=logits), labels)
    expected = by_the_paper(logits.numpy(), labels.numpy(), np.ones((2, 5)), 1e-4) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_labels_gives_zero_and_a_gradient(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    logits = batch[0].requires_grad_()
    loss = custom_loss(SimpleNamespace(logits=logits), torch.full((2, 5), -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_it_says_once_what_it_does(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        custom_loss(SimpleNamespace(logits=batch[0]), batch[1], z=0.125)
    assert capsys.readouterr().out.splitlines() == ["custom_loss: cross entropy + 0.125 * log(Z)^2"]
