from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from swiftplug.plugin import SequenceLogps, TaskModel
from swiftplug_plugins_example.preference import DPOPositive
from swiftplug_plugins_example.task import Unlikelihood

# Two rows of two conversations: the answers to the prompts, then those of other rows.
LABELS = torch.tensor([[-100, 3, 1, -100], [-100, -100, 0, 2], [-100, 0, 2, -100], [-100, -100, 3, 1]])
BATCH = {"labels": LABELS, "rating": torch.tensor([True, False]), "length": torch.tensor([4, 4])}


class Model(TaskModel):
    """Gives the logits of the first conversations, and refuses to be asked for more."""

    def __init__(self) -> None:
        self.logits = (torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1)) * 2).requires_grad_()

    def outputs(self, batch: Any) -> Any:
        assert batch["labels"].shape == (2, 4)
        return SimpleNamespace(logits=self.logits)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_unlikelihood_is_the_formula_of_the_paper(alpha: float) -> None:
    model, task = Model(), Unlikelihood(alpha)
    loss = task.loss(model, BATCH)
    scores = np.exp(model.logits.detach().double().numpy())
    p = scores / scores.sum(-1, keepdims=True)
    good = -np.log(p[0, 0, 3]) - np.log(p[0, 1, 1])
    bad = -np.log(1 - p[1, 1, 0]) - np.log(1 - p[1, 2, 2])
    assert loss.sums["tokens"].item() == pytest.approx(good + alpha * bad, rel=1e-5)
    assert int(task.counts(BATCH)["tokens"]) == 4
    assert loss.logged["logps/bad"].tolist() == pytest.approx(np.log([p[1, 1, 0], p[1, 2, 2]]).tolist(), rel=1e-5)


def test_a_bad_token_of_probability_one_still_has_a_gradient() -> None:
    model = Model()
    with torch.no_grad():
        model.logits[1, 1, 0] += 100
    loss = Unlikelihood().loss(model, BATCH).sums["tokens"]
    loss.backward()
    assert loss.isfinite() and model.logits.grad is not None and model.logits.grad.isfinite().all()


@pytest.mark.parametrize(("chosen", "penalised"), [(1.5, 0.0), (-0.25, 0.25)])
def test_dpo_positive_is_the_formula_of_the_paper(chosen: float, penalised: float) -> None:
    def answers(ratio: float) -> SequenceLogps:
        return SequenceLogps(torch.tensor([-7 + ratio]), torch.tensor([4]), torch.tensor([-7.0]))

    loss = DPOPositive(beta=0.3, penalty=5).pair_loss(answers(chosen), answers(-1.0))
    assert loss.shape == (1,)
    margin = 0.3 * (chosen + 1.0 - 5 * penalised)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-margin)), rel=1e-5)
