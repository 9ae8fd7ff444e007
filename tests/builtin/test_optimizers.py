"""The built-in optimizers: what each does to a weight, by its paper; and that a resumed one goes on bit for bit."""

import importlib.util
import io
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, get_scheduler

from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry

REGISTRY = Registry.discover()
LIBRARY = "pytorch_optimizer"


def run_args(tmp_path: Path, **training: Any) -> Any:
    """What a plugin gets as `args`, for a run of six steps."""
    training_args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], **training)
    return SimpleNamespace(**vars(training_args), training_args=training_args, num_training_steps=6)


def make(name: str, args: Any, model: torch.nn.Module, **options: Any) -> tuple[Any, Any]:
    """The optimizer and schedule of a plugin, with the schedule that Trainer would make where it has none."""
    bound = REGISTRY.resolve("optimizer", PluginChoice(name=name, options=options), "--optimizer").bound
    optimizer, schedule = bound(args, model, None)
    return optimizer, schedule or linear(optimizer, args.warmup_steps)


def linear(optimizer: Any, warmup_steps: int) -> Any:
    return get_scheduler("linear", optimizer, num_warmup_steps=warmup_steps, num_training_steps=8)


@pytest.fixture
def base(tiny_model_dir: Path) -> Callable[[], Any]:
    return lambda: AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


@pytest.fixture
def lora(base: Callable[[], Any]) -> Callable[[], Any]:
    def load() -> Any:
        torch.manual_seed(0)
        tuner = REGISTRY.resolve("tuner", PluginChoice(name="lora", options={"r": 4}), "--tuner").bound
        return tuner.prepare_model(None, base())

    return load


def gradients(model: torch.nn.Module, step: int) -> None:
    """Give a model the gradients of one batch, which depends on the step alone."""
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()


def train(model: torch.nn.Module, made: tuple[Any, Any], steps: range) -> None:
    optimizer, schedule = made
    for step in steps:
        if hasattr(optimizer, "train"):
            optimizer.train()
        gradients(model, step)
        torch.manual_seed(step)  # Trainer restores both generators with a checkpoint
        np.random.seed(step)
        optimizer.step()
        schedule.step()


def through_a_file(value: Any) -> Any:
    """What a checkpoint gives back, read as Trainer reads it."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_resumes_exactly(load: Callable[[], Any], name: str, args: Any, **options: Any) -> None:
    """Six steps, and three, a checkpoint, and three more, must give the same bits, and move all that trains."""
    unbroken = load()
    before = weights(unbroken)
    train(unbroken, make(name, args, unbroken, **options), range(6))
    first = load()
    made = make(name, args, first, **options)
    train(first, made, range(3))
    saved = through_a_file([first.state_dict(), made[0].state_dict(), made[1].state_dict()])
    second = load()
    made = make(name, args, second, **options)
    second.load_state_dict(saved[0])
    made[0].load_state_dict(saved[1])
    made[1].load_state_dict(saved[2])
    train(second, made, range(3, 6))
    after = weights(unbroken)
    for key, value in weights(second).items():
        assert torch.equal(value, after[key]), key
        assert torch.isfinite(value).all(), key
        assert torch.equal(value, before[key]) != unbroken.get_parameter(key).requires_grad, key


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("muon", {}),
        ("muon", {"adjust_lr_fn": "original", "nesterov": False, "adamw_lr": 1e-3}),
        ("galore", {"rank": 4, "update_proj_gap": 2}),
        ("galore", {"rank": 4, "update_proj_gap": 4, "projection_type": "full", "target_modules": ["mlp"]}),
        ("schedule_free", {}),
        (LIBRARY, {"algorithm": "lion"}),
        (LIBRARY, {"algorithm": "AdamUon"}),
        (LIBRARY, {"algorithm": "soap"}),
        (LIBRARY, {"algorithm": "prodigy", "lr": 1.0}),
    ],
)
def test_resume_is_exact(base: Callable[[], Any], tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    def load() -> Any:
        model = base()
        model.get_parameter("model.layers.1.mlp.up_proj.weight").requires_grad_(False)
        return model

    assert_resumes_exactly(
        load, name, run_args(tmp_path, learning_rate=1e-2, weight_decay=0.1, warmup_steps=2), **options
    )


@pytest.mark.parametrize(
    ("name", "options"), [("lorap", {}), ("muon", {}), ("galore", {"rank": 2}), (LIBRARY, {"algorithm": "lorarite"})]
)
def test_resume_is_exact_with_lora(lora: Callable[[], Any], tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    assert_resumes_exactly(
        lora, name, run_args(tmp_path, learning_rate=1e-2, weight_decay=0.1, warmup_steps=2), **options
    )


def test_default_leaves_all_to_trainer(base: Callable[[], Any], tmp_path: Path) -> None:
    bound = REGISTRY.resolve("optimizer", PluginChoice(name="default"), "--optimizer").bound
    assert bound(run_args(tmp_path), base(), None) == (None, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [("muon", {}), ("galore", {"rank": 2}), ("schedule_free", {}), (LIBRARY, {"algorithm": "adabelief"})],
)
def test_every_trained_parameter_once_and_decay_as_trainer_has_it(
    base: Callable[[], Any], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    model = base()
    model.get_parameter("model.layers.0.self_attn.q_proj.weight").requires_grad_(False)
    args = run_args(tmp_path, weight_decay=0.3)
    trainer = Trainer(model=model, args=args.training_args)
    expected = {
        id(parameter): group["weight_decay"]
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    optimizer, _ = make(name, args, model, **options)
    found = [(id(p), group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(expected)
    assert dict(found) == expected


def test_lorap_is_adamw_with_two_learning_rates(lora: Callable[[], Any], tmp_path: Path) -> None:
    args = run_args(tmp_path, learning_rate=1e-3, weight_decay=0.1, warmup_steps=2)
    model, twin = lora(), lora()
    made = make("lorap", args, model, lr_ratio=8)
    of_b = [p for name, p in twin.named_parameters() if "lora_B" in name]
    of_a = [p for name, p in twin.named_parameters() if "lora_A" in name]
    optimizer = torch.optim.AdamW([{"params": of_a}, {"params": of_b, "lr": 8e-3}], lr=1e-3, weight_decay=0.1)
    train(model, made, range(4))
    train(twin, (optimizer, linear(optimizer, 2)), range(4))
    for name, value in weights(twin).items():
        torch.testing.assert_close(model.get_parameter(name).detach(), value, rtol=0, atol=0, msg=name)


def test_lorap_without_lora_is_refused(base: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lorap: the model has no LoRA matrices to train; use the tuner lora"):
        make("lorap", run_args(tmp_path), base())


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five steps of the quintic iteration of Jordan's post, in double precision."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_first_step_by_its_paper(base: Callable[[], Any], tmp_path: Path, adjust: str) -> None:
    model = base()
    bound = REGISTRY.resolve("optimizer", PluginChoice(name="muon", options={"adjust_lr_fn": adjust}), "").bound
    optimizer, schedule = bound(run_args(tmp_path, learning_rate=1e-2, weight_decay=0.1), model, None)
    assert schedule is None
    matrix = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    # Of full rank: torch iterates in bfloat16, which is far off along directions that a gradient hardly has.
    matrix.grad = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
    before, gradient = matrix.detach().double().numpy().copy(), matrix.grad.double().numpy()
    optimizer.step()
    rows, columns = before.shape
    factor = {"original": math.sqrt(max(1, rows / columns)), "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns))}
    # A momentum buffer that starts empty changes the first gradient's length only, which the iteration divides out.
    expected = before * (1 - 1e-2 * 0.1) - 1e-2 * factor[adjust] * newton_schulz(gradient)
    error = np.linalg.norm(matrix.detach().double().numpy() - expected) / np.linalg.norm(expected - before)
    assert error < 0.05


def test_muon_leaves_all_but_hidden_matrices_to_adamw(tiny_model_dir: Path, tmp_path: Path) -> None:
    """With and without tied embeddings: all but hidden matrices move as under AdamW alone."""
    for tied in (True, False):
        model, twin = (
            AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, tie_word_embeddings=tied)
            for _ in range(2)
        )
        if not tied:
            twin.load_state_dict(model.state_dict())
        args = run_args(tmp_path, learning_rate=1e-2, weight_decay=0.1)
        optimizer, _ = REGISTRY.resolve("optimizer", PluginChoice(name="muon"), "").bound(args, model, None)
        adamw = Trainer(model=twin, args=args.training_args).create_optimizer()
        for each, made in ((model, optimizer), (twin, adamw)):
            gradients(each, 0)
            made.step()
        for name, value in weights(twin).items():
            hidden = ".layers." in name and value.ndim == 2
            same = torch.allclose(model.get_parameter(name).detach(), value, rtol=0, atol=1e-6)
            assert same != hidden, name


def test_muon_under_a_gradient_scaler(base: Callable[[], Any], tmp_path: Path) -> None:
    """Scaled gradients give the plain step; an overflow skips the step of both optimizers."""
    plain, scaled = base(), base()
    args = run_args(tmp_path, learning_rate=1e-2)
    bound = REGISTRY.resolve("optimizer", PluginChoice(name="muon"), "").bound
    optimizer, of_scaled = bound(args, plain, None)[0], bound(args, scaled, None)[0]
    gradients(plain, 0)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    gradients(scaled, 0)
    for parameter in scaled.parameters():
        parameter.grad = scaler.scale(parameter.grad)
    scaler.step(of_scaled)
    scaler.update()
    after = weights(plain)
    for name, value in weights(scaled).items():
        torch.testing.assert_close(value, after[name], rtol=0, atol=1e-7)
    before = weights(scaled)
    gradients(scaled, 1)
    scaled.get_parameter("model.norm.weight").grad[0] = math.inf
    scaler.step(of_scaled)
    for name, value in weights(scaled).items():
        assert torch.equal(value, before[name]), name


def test_galore_first_step_by_its_paper(base: Callable[[], Any], tmp_path: Path) -> None:
    """Projected by the leading singular vectors of the gradient, Adam's first step is the sign of what is left."""
    model = base()
    options = {"rank": 4, "scale": 0.5}
    bound = REGISTRY.resolve("optimizer", PluginChoice(name="galore", options=options), "").bound
    optimizer, _ = bound(run_args(tmp_path, learning_rate=1e-2, weight_decay=0.1), model, None)
    gradients(model, 0)
    tall, wide = (model.get_parameter(f"model.layers.0.mlp.{name}.weight") for name in ("up_proj", "down_proj"))
    before = {id(p): p.detach().double().numpy().copy() for p in (tall, wide)}
    slopes = {id(p): p.grad.double().numpy() for p in (tall, wide)}
    optimizer.step()
    for matrix in (tall, wide):
        gradient = slopes[id(matrix)]
        left, _, right = np.linalg.svd(gradient, full_matrices=False)
        if matrix is tall:
            basis = right[:4]
            normed = (gradient @ basis.T) / (np.abs(gradient @ basis.T) + 1e-8 * math.sqrt(1 / (1 - 0.999)))
            update = normed @ basis
        else:
            basis = left[:, :4]
            normed = (basis.T @ gradient) / (np.abs(basis.T @ gradient) + 1e-8 * math.sqrt(1 / (1 - 0.999)))
            update = basis @ normed
        expected = (before[id(matrix)] - 1e-2 * 0.5 * update) * (1 - 1e-2 * 0.1)
        np.testing.assert_allclose(matrix.detach().double().numpy(), expected, atol=2e-5)


def test_galore_keeps_small_moments(base: Callable[[], Any], tmp_path: Path) -> None:
    model = base()
    train(model, made := make("galore", run_args(tmp_path), model, rank=4, target_modules=[r"mlp\.up"]), range(1))
    shapes = {name: tuple(made[0].state[p]["exp_avg"].shape) for name, p in model.named_parameters()}
    assert shapes["model.layers.1.mlp.up_proj.weight"] == (64, 4)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (32, 64)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("up_prj", "no matrix matches 'up_prj'; did you mean 'up_proj'?"), ("(", "'(' is not a regular expression")],
)
def test_galore_refuses_patterns(base: Callable[[], Any], tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        make("galore", run_args(tmp_path), base(), target_modules=[pattern])
    assert message in str(error.value)


def quadratic(seed: int = 0) -> tuple[torch.nn.Linear, torch.Tensor]:
    """A vector and where it is drawn to: the gradient is the distance."""
    torch.manual_seed(seed)
    return torch.nn.Linear(5, 1, bias=False), torch.randn(1, 5)


def test_schedule_free_by_its_paper(tmp_path: Path) -> None:
    """Algorithm 1 of arXiv 2405.15682, in numpy: in `eval` mode the weights are the average x, in `train` mode y."""
    model, goal = quadratic()
    args = run_args(tmp_path, learning_rate=0.1, weight_decay=0.1, warmup_steps=3, adam_beta1=0.9, adam_beta2=0.95)
    optimizer, schedule = make("schedule_free", args, model)
    x = z = model.weight.detach().double().numpy().copy()
    second, total = np.zeros_like(x), 0.0
    for step in range(1, 9):
        optimizer.train()
        y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(model.weight.detach().numpy(), y, atol=1e-5)
        model.weight.grad = (model.weight - goal).detach()
        optimizer.step()
        schedule.step()
        gradient = y - goal.numpy()
        second = 0.95 * second + 0.05 * gradient**2
        rate = 0.1 * min(1, step / 3)
        z = z - rate * (gradient / (np.sqrt(second / (1 - 0.95**step)) + 1e-8) + 0.1 * y)
        total += rate**2
        x = x + rate**2 / total * (z - x)
        optimizer.eval()
        np.testing.assert_allclose(model.weight.detach().numpy(), x, atol=1e-5)
        assert schedule.get_last_lr() == [0.1]


def test_library_lion_by_its_paper(tmp_path: Path) -> None:
    """Algorithm 2 of arXiv 2302.06675, in numpy, with parameters from the options."""
    model, goal = quadratic()
    args = run_args(tmp_path, learning_rate=0.01, weight_decay=0.2)
    optimizer, _ = REGISTRY.resolve(
        "optimizer", PluginChoice(name=LIBRARY, options={"algorithm": "lion", "betas": [0.8, 0.95]}), ""
    ).bound(args, model, None)
    weight, momentum = model.weight.detach().double().numpy().copy(), 0.0
    for _ in range(5):
        model.weight.grad = (model.weight - goal).detach()
        optimizer.step()
        gradient = weight - goal.numpy()
        weight = weight - 0.01 * (np.sign(0.8 * momentum + 0.2 * gradient) + 0.2 * weight)
        momentum = 0.95 * momentum + 0.05 * gradient
        np.testing.assert_allclose(model.weight.detach().numpy(), weight, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "lyon"}, "the library has no algorithm 'lyon'; did you mean 'lion'?"),
        ({"algorithm": "lion", "beta": 1}, "lion has no parameter 'beta'; did you mean 'betas'?"),
        ({"algorithm": "sophiah"}, "'sophiah' cannot be used here: it needs second derivatives"),
        ({"algorithm": "ranger21"}, "ranger21 needs the parameter 'num_iterations'"),
        ({}, "needs the option 'algorithm'"),
    ],
)
def test_library_refuses_before_a_model_is_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        REGISTRY.resolve("optimizer", PluginChoice(name=LIBRARY, options=options), "--optimizer")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_library_refuses_bad_values(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pytorch_optimizer: lion: "):
        make(LIBRARY, run_args(tmp_path), quadratic()[0], algorithm="lion", betas=[2.0, 3.0])


def test_library_schedule_free_keeps_a_constant_rate(tmp_path: Path) -> None:
    args = run_args(tmp_path, learning_rate=0.3)
    bound = REGISTRY.resolve(
        "optimizer", PluginChoice(name=LIBRARY, options={"algorithm": "ScheduleFreeAdamW"}), ""
    ).bound
    optimizer, schedule = bound(args, quadratic()[0], None)
    optimizer.train()
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.3


def usable_algorithms() -> list[str]:
    library = pytest.importorskip("pytorch_optimizer")

    def usable(name: str) -> bool:
        try:
            REGISTRY.resolve("optimizer", PluginChoice(name=LIBRARY, options={"algorithm": name}), "")
        except UserError:
            return False
        return True

    return [name for name in library.get_supported_optimizers() if usable(name)]


class Small(torch.nn.Module):
    """Less than a language model, so that over a hundred algorithms take seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        hidden = self.norm(self.hidden(input_ids[:, :8] / 250))
        return SimpleNamespace(loss=(hidden - labels[:, 4:] / 250).pow(2).mean())


def test_library_every_algorithm_resumes_exactly(tmp_path: Path) -> None:
    names = usable_algorithms()
    assert len(names) > 100
    for name in sorted(set(names) - {"lorarite", "sara"}):  # for LoRA only; trains a few of the parameters by design
        if name == "demo" and importlib.util.find_spec("einops") is None:
            continue
        rate = 1.0 if name.startswith(("dadapt", "prodigy")) else 1e-2
        warmup_steps = 0 if name in ("asgd", "ftrl", "gravity") else 2
        args = run_args(tmp_path, learning_rate=rate, warmup_steps=warmup_steps)
        assert_resumes_exactly(Small, LIBRARY, args, algorithm=name)


def test_library_refuses_a_warmup_from_zero_where_that_divides(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gravity divides by the learning rate.*set training.warmup_steps to 0"):
        make(LIBRARY, run_args(tmp_path, warmup_steps=2), quadratic()[0], algorithm="gravity")


@pytest.mark.parametrize(("name", "options"), [("muon", {}), ("galore", {"rank": 4}), ("schedule_free", {})])
def test_resume_in_trainer_is_exact(
    base: Callable[[], Any], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """Through accelerate's wrapper, Trainer's checkpoint files and its safe load of them."""
    rows = [{"input_ids": [5 + index] * 6, "labels": [5 + index] * 6} for index in range(12)]
    args = run_args(
        tmp_path, learning_rate=1e-2, max_steps=6, save_steps=3, per_device_train_batch_size=2, disable_tqdm=True
    )

    def trainer() -> Trainer:
        model = base()
        bound = REGISTRY.resolve("optimizer", PluginChoice(name=name, options=options), "").bound
        return Trainer(model=model, args=args.training_args, train_dataset=rows, optimizers=bound(args, model, None))

    unbroken, resumed = trainer(), trainer()
    unbroken.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    after = weights(unbroken.model)
    for key, value in weights(resumed.model).items():
        assert torch.equal(value, after[key]), key
