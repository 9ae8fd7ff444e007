"""PPO: advantages by their definition in NumPy, and the loss and gradient by the formulas of the papers."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from swiftplug.builtin.tasks.ppo import GAE, PPO
from swiftplug.errors import UserError
from swiftplug.plugin import Drawn
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.testing.tiny import TinyRun
from swiftplug.training.online.values import value_head_of
from swiftplug.training.task_loss import TaskLossComputer

TRAINS = [
    [0, 1, 1, 1, 1, 1, 1],
    [0, 0, 0, 1, 0, 0, 0],
    [0, 1, 1, 0, 0, 1, 1],  # an environment answers between
    [0, 0, 0, 0, 0, 0, 0],  # cut off, and does not train
]


def advantages_by_definition(rewards: Any, values: Any, gamma: float, lam: float) -> Any:
    """Equation 16 of arXiv 1506.02438 for an episode that ends: sums of errors, none bootstrapped behind the end."""
    following = np.append(values[1:], 0.0)
    errors = rewards + gamma * following - values
    steps = range(len(errors))
    return np.array([sum((gamma * lam) ** (k - t) * errors[k] for k in steps[t:]) for t in steps])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.8), (0.7, 0.0)])
def test_advantages_are_those_of_the_definition(gamma: float, lam: float) -> None:
    draw = np.random.default_rng(0)
    trains = np.array(TRAINS, dtype=bool)
    rewards, values = draw.normal(size=(2, *trains.shape)).astype(np.float32)
    found = GAE(gamma, lam)(*map(torch.from_numpy, (rewards, values, trains))).numpy()
    expected = np.zeros(trains.shape)
    for row, places in enumerate(trains):
        expected[row, places] = advantages_by_definition(rewards[row, places], values[row, places], gamma, lam)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def drawn(rewards: list[list[float]], all_processes: Any = lambda tensor: tensor) -> Drawn:
    """Two groups of two candidates, with whatever else a model says of them."""
    draw = np.random.default_rng(1)
    trains = torch.tensor(TRAINS, dtype=torch.bool)
    steps, *others = (torch.from_numpy(it).float() * trains for it in draw.normal(size=(4, *trains.shape)))
    return Drawn(torch.tensor(rewards), trains, steps, *others, all_processes)


def test_rewards_of_answers_steps_and_divergence_meet_at_their_tokens() -> None:
    given = drawn([[1.0, 0.5], [-0.25, 1.0]])
    assert given.logps is not None and given.reference_logps is not None and given.values is not None
    found = {name: it.numpy() for name, it in PPO(beta=0.3, gamma=0.9, lam=0.8).estimate(given).items()}
    rewards = (given.token_rewards - 0.3 * (given.logps - given.reference_logps)).double().numpy()
    for row, (last, reward) in enumerate([(6, 1.0), (3, 0.5), (6, -0.25)]):
        rewards[row, last] += reward
    trains, values = given.trains.numpy(), given.values.double().numpy()
    expected = np.zeros(trains.shape)
    for row, places in enumerate(trains):
        expected[row, places] = advantages_by_definition(rewards[row, places], values[row, places], 0.9, 0.8)
    np.testing.assert_allclose(found["returns"] * trains, (expected + values) * trains, rtol=1e-5, atol=1e-6)
    tokens = expected[trains]
    white = (expected - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8) * trains
    np.testing.assert_allclose(found["advantages"], white, rtol=1e-4, atol=1e-5)


def test_an_answer_without_a_reward_is_left_out() -> None:
    whole = PPO(beta=0.0).estimate(drawn([[1.0, float("nan")], [0.0, 1.0]]))
    assert whole["advantages"][1].isnan().any() and not whole["advantages"][[0, 2, 3]].isnan().any()


def test_advantages_are_whitened_over_all_processes() -> None:
    """Two processes with half of the candidates each."""
    whole = drawn([[1.0, 0.5], [-0.25, 1.0]])
    expected = PPO(beta=0.1).estimate(whole)["advantages"]
    barrier, given = threading.Barrier(2), [torch.zeros(())] * 2
    found: list[Any] = [None, None]

    def process(number: int) -> None:
        def add_up(tensor: torch.Tensor) -> torch.Tensor:
            given[number] = tensor
            barrier.wait()
            total = given[0] + given[1]
            barrier.wait()
            return total

        rows = slice(2 * number, 2 * number + 2)
        tensors = (whole.trains, whole.token_rewards, whole.logps, whole.reference_logps, whole.values)
        half = Drawn(whole.rewards[number : number + 1], *(it[rows] for it in tensors), add_up)  # type: ignore[index]
        found[number] = PPO(beta=0.1).estimate(half)["advantages"]

    threads = [threading.Thread(target=process, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat(found), expected)


@pytest.fixture
def tiny(tmp_path: Path) -> Any:
    """A tiny run of PPO: `tiny(tuner, **options of the task)`."""

    def make(tuner: str = "swiftplug:full", **options: Any) -> TinyRun:
        choice = PluginChoice(name="ppo", options=options)
        plugin = Registry.discover(allow=[]).resolve("task", choice, "--task")
        return TinyRun(plugin, tmp_path, tuner=tuner)

    return make


@pytest.mark.parametrize("tuner", ["swiftplug:full", "swiftplug:lora"])
def test_the_loss_and_its_gradient_are_those_of_the_paper_however_a_step_is_cut(tiny: Any, tuner: str) -> None:
    run = tiny(tuner, value_coefficient=0.5, value_clip=0.1, epsilon=0.1, epsilon_high=0.15)
    run.args.task.check_run(SimpleNamespace(max_new_tokens=8))
    model = run.model().eval()
    head = value_head_of(model)
    assert head is not None and not head.weight.any() and not head.bias.any()
    assert {"value_head.weight", "value_head.bias"} < {n for n, it in model.named_parameters() if it.requires_grad}
    torch.manual_seed(0)
    head.weight.data.normal_(), head.bias.data.normal_()
    trains = torch.tensor(TRAINS, dtype=torch.bool)
    ids = torch.randint(3, 200, trains.shape)
    facts = {name: torch.randn(trains.shape) for name in ("advantages", "returns", "values", "old_logps")}
    facts["old_logps"] = facts["old_logps"] * 0.2 - 5.5
    whole = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(~trains, -100),
        "length": torch.full((4,), ids.shape[1]),
        "reference_logps": torch.zeros(trains.shape),
        **facts,
    }
    computer = _computer(run, model)
    parts = [{name: it[rows] for name, it in whole.items()} for rows in ([0], [1, 2], [3])]
    counts = [computer.counts(part) for part in parts]
    totals = {name: torch.stack([count[name] for count in counts]).sum() for name in counts[0]}
    computed = [computer(model, part, totals) for part in parts]
    loss = torch.stack([each.loss for each in computed]).sum()
    loss.backward()
    gradients = {name: it.grad.clone() for name, it in model.named_parameters() if it.grad is not None}

    model.zero_grad()
    outputs = model(input_ids=ids, output_hidden_states=True)
    logps = outputs.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    # The head learns ten times as fast as the model: its parameters count tenfold, but not in their gradient.
    weight, bias = ((10 * it.detach()).requires_grad_() for it in (head.weight, head.bias))
    values = (outputs.hidden_states[-1][:, :-1] @ weight.T)[..., 0] + bias
    trained, facts = trains[:, 1:], {name: it[:, 1:] for name, it in facts.items()}
    ratios = (logps - facts["old_logps"]).exp()
    policy = torch.max(-facts["advantages"] * ratios, -facts["advantages"] * ratios.clamp(0.9, 1.15))
    near = torch.max(torch.min(values, facts["values"] + 0.1), facts["values"] - 0.1)
    value = torch.max((values - facts["returns"]) ** 2, (near - facts["returns"]) ** 2) / 2
    expected = ((policy + 0.5 * value) * trained).sum() / trained.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    head.weight.grad, head.bias.grad = weight.grad, bias.grad
    assert set(gradients) == {name for name, it in model.named_parameters() if it.grad is not None}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            largest = float(parameter.grad.abs().max())
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5 * largest + 1e-9)
    logged = torch.cat([each.logged["value_error"] for each in computed])
    torch.testing.assert_close(logged.mean(), ((values - facts["returns"]) ** 2)[trained].mean().detach())


def _computer(run: TinyRun, model: Any) -> Any:
    arguments = run.args.training_args
    assert arguments.device.type == "cpu"  # makes the state that accelerate has only one of
    return TaskLossComputer(run.args.plugins.one("task"), model, Accelerator(cpu=True), arguments, None, None)


def online(**options: Any) -> dict[str, Any]:
    """The options of a run of `ppo` that draws two answers to each of two prompts for three steps."""
    task = {"task": "ppo", "orm": [{"name": "length", "max_chars": 40, "margin_chars": 40}], "max_new_tokens": 8}
    return {**task, "num_return_sequences": 2, **options}


SETS = ["task.num_iterations=3", "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=2"]
SETS += ["training.max_steps=2", "training.save_strategy=steps", "training.save_steps=1", "training.logging_steps=1"]


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_value_head_is_in_checkpoints_and_not_in_the_model(
    run: Any, tiny_model_dir: Path, tmp_path: Path, tuner: str
) -> None:
    metrics = run(sets=[*SETS, "training.learning_rate=1e-2"], **online(tuner=tuner)).metrics
    assert {"value_error", "kl", "entropy", "clipped"} <= metrics.keys()
    folder = tmp_path / "run"
    heads = [load_file(folder / f"checkpoint-{step}" / "value_head.safetensors") for step in (1, 2)]
    assert [sorted(head) for head in heads] == [["bias", "weight"]] * 2
    assert heads[0]["bias"].any() and not torch.equal(heads[0]["weight"], heads[1]["weight"])
    for place in (folder, folder / "checkpoint-2"):
        for file in place.glob("*model.safetensors"):
            assert not any("value_head" in name for name in load_file(file))
        if tuner == "full":
            _, info = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
            assert not info["unexpected_keys"] and not info["missing_keys"]
        else:
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), place)
    assert not (folder / "value_head.safetensors").exists()
    assert (folder / "checkpoint-2" / "drawn-0.pt").exists()


def test_a_resume_amid_a_drawing_needs_what_was_drawn(run: Any, tmp_path: Path) -> None:
    run(sets=SETS, **online())
    checkpoint = tmp_path / "run" / "checkpoint-2"
    others = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=4"]
    with pytest.raises(UserError, match="checkpoint-2 is in the middle of the 3 steps with one drawing") as error:
        run(sets=[*SETS, *others], resume=True, **online())
    assert "\n" not in str(error.value)
    (checkpoint / "drawn-0.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoint-2 has no drawn-0\.pt"):
        run(sets=SETS, resume=True, **online())
    (checkpoint / "value_head.safetensors").unlink()
    with pytest.raises(UserError, match=r"checkpoint-2 has no value_head\.safetensors"):
        run(sets=SETS, resume=True, **online())


def test_a_step_whose_answers_are_all_cut_off_trains_nothing(run: Any, tmp_path: Path) -> None:
    done = run(sets=[*SETS, "task.mask_cut_off=true", "task.beta=0"], **online(max_new_tokens=2))
    drawn = [json.loads(line) for line in (tmp_path / "run" / "candidates.jsonl").read_text().splitlines()]
    assert {line["finish_reason"] for line in drawn} == {"length"}
    assert done.metrics["train_loss"] == done.metrics["grad_norm"] == 0


def test_a_model_whose_head_runs_within_it_alone_is_refused(run: Any) -> None:
    with pytest.raises(UserError, match="needs a value head beside the output head, but that of LlamaForCausalLM"):
        run(sets=[*SETS, "training.ddp_find_unused_parameters=true"], **online())


HALVES = """
from swiftplug.plugin import PRM, Unscored, register_prm

@register_prm("halves")
class Halves(PRM):
    def __call__(self, infer_requests, **kwargs):
        texts = [request.messages[-1]["content"] for request in infer_requests]
        return [[0.25, 0.5] if len(text) > 3 else Unscored("short") for text in texts]

    def step_ends(self, text):
        return [len(text) // 2, len(text)]
"""


def test_a_process_reward_model_rewards_tokens_in_a_run(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Drawn] = []
    estimate = PPO.estimate
    monkeypatch.setattr(PPO, "estimate", lambda task, drawn: seen.append(drawn) or estimate(task, drawn))
    given = online(prm=[{"name": "halves", "weight": 2.0}], max_new_tokens=24)
    metrics = run(sets=SETS, plugins=HALVES, **given).metrics
    [drawn] = seen  # of both steps
    lines = [json.loads(line) for line in (tmp_path / "run" / "candidates.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and any(line["reward"] is not None for line in lines)
    of_length = [None if line["reward"] is None else line["scores"]["length"] for line in lines]
    for line, of_steps, outcome, trains, length in zip(
        lines, drawn.token_rewards, drawn.rewards.reshape(-1), drawn.trains, of_length, strict=True
    ):
        if length is None:
            assert outcome.isnan()
            continue
        assert of_steps[trains].sum() == 1.5 and outcome.item() == pytest.approx(length)
        assert line["reward"] == pytest.approx(length + 1.5)
        rewarded = of_steps.nonzero()[:, 0]
        is_cut_off = line["finish_reason"] == "length"
        assert trains.nonzero()[-1] - rewarded[-1] == (0 if is_cut_off else 1)  # behind the text, the end of the turn
    known = [line["reward"] for line in lines if line["reward"] is not None]
    assert metrics["reward"] == pytest.approx(sum(known) / len(known))
