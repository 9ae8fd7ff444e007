"""The built-in losses against their papers' formulas, Transformers and TRL."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from swiftplug.builtin.losses.token_losses import CrossEntropy, DynamicFineTuning, Focal, LabelSmoothing
from swiftplug.errors import UserError

ROWS, LENGTH, VOCAB = 3, 9, 17


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def smoothed(log_probs: np.ndarray, target: int, epsilon: float) -> float:
    distribution = np.full(VOCAB, epsilon / VOCAB)
    distribution[target] += 1 - epsilon
    return float(-(distribution * log_probs).sum())


FORMULAS = [
    pytest.param(CrossEntropy(), lambda lp, t: -lp[t], id="cross_entropy"),
    pytest.param(DynamicFineTuning(), lambda lp, t: -np.exp(lp[t]) * lp[t], id="dft"),
    pytest.param(LabelSmoothing(), lambda lp, t: smoothed(lp, t, 0.1), id="label_smoothing"),
    pytest.param(LabelSmoothing(epsilon=0.4), lambda lp, t: smoothed(lp, t, 0.4), id="label_smoothing-0.4"),
    pytest.param(Focal(), lambda lp, t: -((1 - np.exp(lp[t])) ** 2) * lp[t], id="focal"),
    pytest.param(Focal(gamma=0.5), lambda lp, t: -((1 - np.exp(lp[t])) ** 0.5) * lp[t], id="focal-0.5"),
]
LOSSES = [CrossEntropy(), DynamicFineTuning(), LabelSmoothing(0.2), Focal(0.5), Focal(3.0)]
LOSS_IDS = ["cross_entropy", "dft", "label_smoothing", "focal-0.5", "focal-3"]


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels with -100 in them (at the first label too), and weights that differ everywhere."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(ROWS, LENGTH, VOCAB, generator=generator)
    labels = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
    labels[torch.rand(ROWS, LENGTH, generator=generator) < 0.4] = -100
    labels[1] = -100
    labels[2, -1] = 5
    return logits, labels, 0.1 + 2 * torch.rand(ROWS, LENGTH, generator=generator)


@pytest.mark.parametrize(("loss", "formula"), FORMULAS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("items", [None, 40, torch.tensor(40)])
def test_is_the_weighted_sum_of_the_formula_over_the_items(loss: Any, formula: Any, weighted: bool, items: Any) -> None:
    logits, labels, weights = batch()
    log_probs = log_softmax(logits.double().numpy())
    terms = [
        (weights[row, place].item() if weighted else 1.0)
        * formula(log_probs[row, place - 1], labels[row, place].item())
        for row in range(ROWS)
        for place in range(1, LENGTH)
        if labels[row, place] != -100
    ]
    assert len(terms) > 5

    result = loss(SimpleNamespace(logits=logits), labels, weights if weighted else None, items)

    assert result.shape == ()
    assert result.item() == pytest.approx(sum(terms) / (len(terms) if items is None else 40), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=LOSS_IDS)
def test_does_not_depend_on_how_the_batch_is_cut(loss: Any) -> None:
    logits, labels, weights = batch(1)
    items = int((labels[:, 1:] != -100).sum())
    whole = loss(SimpleNamespace(logits=logits), labels, weights)
    rows = [
        loss(SimpleNamespace(logits=logits[row : row + 1]), labels[row : row + 1], weights[row : row + 1], items)
        for row in range(ROWS)
    ]
    assert sum(rows).item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=LOSS_IDS)
def test_only_logits_before_a_label_get_a_gradient(loss: Any) -> None:
    logits, labels, weights = batch(2)
    logits.requires_grad_()
    loss(SimpleNamespace(logits=logits), labels, weights).backward()
    reached = logits.grad.abs().sum(-1) > 0
    assert torch.equal(reached[:, :-1], labels[:, 1:] != -100)
    assert not reached[:, -1].any()


@pytest.mark.parametrize("loss", LOSSES, ids=LOSS_IDS)
def test_a_batch_without_labels_is_zero_and_pulls_nowhere(loss: Any) -> None:
    logits = torch.randn(2, 4, VOCAB, requires_grad=True)
    result = loss(SimpleNamespace(logits=logits), torch.full((2, 4), -100))
    result.backward()
    assert result.item() == 0
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("loss", [CrossEntropy(), LabelSmoothing(0.2), Focal(0.5), Focal(2.0)])
def test_gradient_is_that_of_finite_differences(loss: Any) -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda values: loss.token_loss(values, targets), logits)


def test_dft_gradient_is_that_of_cross_entropy_times_the_probability() -> None:
    """`p_t (p - y)`: finite differences would also differentiate the factor that the paper stops."""
    logits = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2, 1])
    DynamicFineTuning().token_loss(logits, targets).sum().backward()

    probabilities = np.exp(log_softmax(logits.detach().numpy()))
    expected = (probabilities - np.eye(6)[targets]) * probabilities[np.arange(5), targets][:, None]
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-12)


def test_cross_entropy_is_the_loss_of_transformers() -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, labels, _ = batch(5)
    for items in (None, 31):
        theirs = ForCausalLMLoss(logits, labels, VOCAB, num_items_in_batch=items)
        torch.testing.assert_close(CrossEntropy()(SimpleNamespace(logits=logits), labels, None, items), theirs)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7])
def test_label_smoothing_is_that_of_transformers(epsilon: float) -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    logits, labels, _ = batch(6)
    theirs = LabelSmoother(epsilon)({"logits": logits}, labels, shift_labels=True)  # a mean over the labels
    total = theirs * (labels[:, 1:] != -100).sum()
    for items, expected in ((None, theirs), (31, total / 31)):
        ours = LabelSmoothing(epsilon)(SimpleNamespace(logits=logits), labels, None, items)
        torch.testing.assert_close(ours, expected)


def test_dft_is_the_loss_of_trl(tiny_model_dir: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": list(range(3, 3 + length)), "labels": [-100, *range(4, 3 + length)]} for length in (12, 30)]
    config = SFTConfig(
        output_dir=str(tmp_path), loss_type="dft", report_to="none", use_cpu=True, bf16=False, model_init_kwargs={}
    )
    trainer = SFTTrainer(model=str(tiny_model_dir), args=config, train_dataset=Dataset.from_list(rows))
    inputs = next(iter(trainer.get_train_dataloader()))
    labels = inputs["labels"].clone()
    theirs = trainer.compute_loss(trainer.model, dict(inputs))

    outputs = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    torch.testing.assert_close(DynamicFineTuning()(outputs, labels), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("probability", "times_lower"), [(0.9, 100), (0.968, 1000)])
def test_focal_fades_as_its_paper_says(probability: float, times_lower: int) -> None:
    """Section 3.2 of the paper, for gamma = 2 (0.968 is its rounding)."""
    logits = torch.tensor([[probability, 1 - probability]]).log()
    target = torch.tensor([0])
    ratio = CrossEntropy().token_loss(logits, target) / Focal(2.0).token_loss(logits, target)
    assert ratio.item() == pytest.approx(times_lower, rel=0.03)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_of_a_certain_token_is_finite(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = Focal(gamma).token_loss(logits, torch.tensor([0]))
    loss.sum().backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() < 1e-6


def test_focal_of_an_impossible_token_pulls_as_cross_entropy_does() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    Focal(2.0).token_loss(logits, torch.tensor([1])).sum().backward()
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits, labels, _ = batch(7)
    rounded = logits.bfloat16()
    for loss in LOSSES:
        result = loss(SimpleNamespace(logits=rounded), labels)
        torch.testing.assert_close(result, loss(SimpleNamespace(logits=rounded.float()), labels))
        assert result.dtype == torch.float32


@pytest.mark.parametrize("epsilon", [-0.1, 1, 1.5, math.nan])
def test_label_smoothing_refuses_what_is_no_share(epsilon: float) -> None:
    with pytest.raises(UserError, match=rf"label_smoothing: epsilon is {epsilon}, expected a number from 0"):
        LabelSmoothing(epsilon)


@pytest.mark.parametrize("gamma", [-0.5, math.inf, math.nan])
def test_focal_refuses_what_is_no_exponent(gamma: float) -> None:
    with pytest.raises(UserError, match=rf"focal: gamma is {gamma}, expected a finite number of at least 0"):
        Focal(gamma)
