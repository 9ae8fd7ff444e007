from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swiftplug_plugins_example.optimizer import Lion, custom


def test_steps_are_those_of_the_paper() -> None:
    generator = np.random.default_rng(0)
    weights, gradients = generator.normal(size=(3, 4)), generator.normal(size=(6, 3, 4))
    lr, beta1, beta2, decay = 0.05, 0.8, 0.95, 0.1
    parameter = torch.nn.Parameter(torch.tensor(weights))
    optimizer = Lion([{"params": [parameter], "weight_decay": decay}], lr=lr, betas=(beta1, beta2))
    momentum = np.zeros_like(weights)
    for gradient in gradients:
        weights -= lr * (np.sign(beta1 * momentum + (1 - beta1) * gradient) + decay * weights)
        momentum = beta2 * momentum + (1 - beta2) * gradient
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), weights, rtol=1e-12)


def test_only_what_trains_is_moved_and_only_matrices_decay(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 3))
    model[2].requires_grad_(False)
    args = SimpleNamespace(learning_rate=1e-3, weight_decay=0.25)
    optimizer, scheduler = custom(args, model, None, lr_scale=0.5)
    assert scheduler is None
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {
        id(model[0].weight): 0.25,
        id(model[0].bias): 0.0,
        id(model[1].weight): 0.0,
        id(model[1].bias): 0.0,
    }
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4}
    assert capsys.readouterr().out == "custom: Lion, lr 0.0005, betas (0.9, 0.99), 4 tensors, 1 matrices\n"
