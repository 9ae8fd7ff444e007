from types import SimpleNamespace
from typing import Any

import pytest
import torch

from swiftplug.scaffold.package.optimizer import layerwise_adamw

ARGS: Any = SimpleNamespace(learning_rate=0.1, weight_decay=0.01, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8)


def test_earlier_layers_learn_more_slowly() -> None:
    layers = [torch.nn.Linear(2, 2) for _ in range(3)]
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 2), "layers": torch.nn.ModuleList(layers)})
    layers[1].requires_grad_(False)
    optimizer, scheduler = layerwise_adamw(ARGS, model, None, decay=0.5)
    assert scheduler is None
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates == {
        id(model["embed"].weight): pytest.approx(0.1 / 8),
        **{id(parameter): pytest.approx(0.1 / 4) for parameter in layers[0].parameters()},
        **{id(parameter): pytest.approx(0.1) for parameter in layers[2].parameters()},
    }
