import math

import pytest
import torch

from swiftplug.plugin import SequenceLogps
from swiftplug.scaffold.package.task import LengthPenalizedDPO


def logps(ratio: float, length: int) -> SequenceLogps:
    return SequenceLogps(torch.tensor([ratio - 7.0]), torch.tensor([length]), torch.tensor([-7.0]))


@pytest.mark.parametrize(("alpha", "margin"), [(0.0, 0.3 * 3), (0.05, 0.3 * 3 - 0.05 * 10)])
def test_it_is_the_formula_of_the_paper(alpha: float, margin: float) -> None:
    loss = LengthPenalizedDPO(beta=0.3, alpha=alpha).pair_loss(logps(2, length=14), logps(-1, length=4))
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-margin))], rel=1e-5)
