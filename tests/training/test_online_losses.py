"""Online objectives against TRL: the same candidates and rewards, the same loss and gradient.

Where TRL differs from a paper or from what is done here:

- A candidate whose reward is missing has an advantage of 0 in TRL and counts in the mean; here it is left out.
- A candidate that was cut off, and does not train, adds the constant `-advantage` to TRL's loss of RLOO, which has no
  gradient; here it adds 0.
- DAPO (arXiv 2503.14476) and CISPO (arXiv 2506.13585) divide by the tokens of a group; TRL, and this, by those of the
  step. TRL's DAPO keeps what was cut off unless it is asked not to.
- TRL weighs the divergence of its GRPO by the ratio of new and old probabilities (arXiv 2512.02556) unless it is asked
  not to, which the paper of GRPO (arXiv 2402.03300) and this do not.
- TRL names no GSPO: it is its `grpo` with ratios of sequences.
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import AutoModelForCausalLM, TrainingArguments

from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.runs.console import RunProgress
from swiftplug.sampling.rows import Row
from swiftplug.training.online.batches import DrawnBatches
from swiftplug.training.online.record import DrawnCandidate
from swiftplug.training.task_loss import TaskLossComputer

PROMPTS, GROUP, END = 3, 4, 2
CUT_OFF = (1, 6)  # candidates without the end of their turn
LONGEST = 16
OTHERS = [*range(9), 10, 11]
UNBIASED = {"use_bias_correction_kl": False}
TERMS = 0.5  # the size of the terms of RLOO's loss: rewards above a mean
REWARDS = [1.0, 0.0, 0.5, 0.25, 0.0, 1.0, 1.0, 0.0, 0.3, 0.3, -0.5, 0.3]
TRUNCATED = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.05}

Weights = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def drawn(trl_oracle: Any) -> Any:
    """Four candidates to each of three prompts, all of other lengths, and what an engine says of their tokens."""
    draw = random.Random(0)
    prompts = [[draw.randrange(3, 259) for _ in range(3 + 4 * index)] for index in range(PROMPTS)]
    answers = [[draw.randrange(3, 259) for _ in range(draw.randrange(1, LONGEST))] for _ in range(PROMPTS * GROUP)]
    answers = [ids if index in CUT_OFF else [*ids, END] for index, ids in enumerate(answers)]
    return trl_oracle.Drawn([prompt for prompt in prompts for _ in range(GROUP)], answers, REWARDS)


@pytest.fixture(scope="module")
def weights(tiny_model_dir: Path) -> tuple[Weights, Weights]:
    """Those of the model when it draws, which are not the reference's, and those after some steps."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    moved = []
    for size in (0.02, 0.03):
        for parameter in model.parameters():
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
        moved.append({name: it.clone() for name, it in model.state_dict().items()})
    return moved[0], moved[1]


@pytest.fixture
def ours(trl_oracle: Any, tiny_model_dir: Path, drawn: Any, weights: tuple[Weights, Weights]) -> Any:
    """Takes a step of ours: `ours(task, **options)`."""
    return partial(own_step, oracle=trl_oracle, model_dir=tiny_model_dir, drawn=drawn, weights=weights)


@pytest.fixture
def theirs(trl_oracle: Any, tiny_model_dir: Path, drawn: Any, weights: tuple[Weights, Weights], tmp_path: Path) -> Any:
    """Takes a step of TRL's: `theirs(task, **options)`."""

    def step(task: str, drawn: Any = drawn, weights: tuple[Weights, Weights] = weights, **options: Any) -> Any:
        options = {"num_generations": GROUP, **options}
        return trl_oracle.trl_policy_step(task.upper(), tiny_model_dir, drawn, tmp_path, weights, **options)

    return step


def own_step(
    task: str,
    *,
    oracle: Any,
    model_dir: Path,
    drawn: Any,
    weights: tuple[Weights, Weights],
    temperature: float = 1.0,
    **options: Any,
) -> Any:
    """What ours is for these candidates, in three micro-batches, padded on the right."""
    plugin = Registry.discover(allow=[]).resolve("task", PluginChoice(name=task, options=options), "--task")
    plugin.bound.check_run(SimpleNamespace(max_new_tokens=LONGEST))
    model, reference = (AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32) for _ in range(2))
    model.load_state_dict(dict(weights[0]))
    arguments = TrainingArguments(str(model_dir / "none"), use_cpu=True, report_to=[])
    assert arguments.device.type == "cpu"  # makes the state that accelerate has only one of
    accelerator = Accelerator(cpu=True)
    computer = TaskLossComputer(plugin, model, accelerator, arguments, reference, None, temperature)
    progress = RunProgress(Console(quiet=True))
    drawn_batches = DrawnBatches(plugin.bound, accelerator, progress, GROUP, pad_token_id=0)
    candidates = [
        DrawnCandidate(
            index,
            "",
            "stop" if ids[-1] == END else "length",
            prompt_ids=prompt,
            ids=ids,
            drawn=[True] * len(ids),
            logps=drawn.sampler_logps[index] if drawn.sampler_logps else [],
            reward=None if reward != reward else reward,
        )
        for index, (prompt, ids, reward) in enumerate(zip(drawn.prompts, drawn.answers, drawn.rewards, strict=True))
    ]
    groups = [
        Row(str(start), "here:1", candidates=candidates[start : start + GROUP])
        for start in range(0, len(candidates), GROUP)
    ]
    with progress:
        drawn_batches.make(groups, 3, 0, computer)
    batches = drawn_batches.batches
    model.load_state_dict(dict(weights[1]))
    model.train()
    counts = [computer.counts(batch) for batch in batches]
    totals = {name: torch.stack([count[name] for count in counts]).sum() for name in counts[0]}
    loss = torch.stack([computer(model, batch, totals).loss for batch in batches]).sum()
    loss.backward()
    columns = ("input_ids", "attention_mask", "labels")
    texts = sorted(text for batch in batches for text in oracle.texts_of(*map(batch.__getitem__, columns)))
    gradients = {name: it.grad for name, it in model.named_parameters() if it.grad is not None}
    return oracle.Step(texts, loss.item(), gradients)


@pytest.mark.parametrize(
    ("task", "own", "trls"),
    [
        ("grpo", {}, {"loss_type": "grpo"}),
        ("grpo", {"scale_rewards": "batch"}, {"loss_type": "grpo", "scale_rewards": "batch"}),
        ("grpo", {"scale_rewards": "none"}, {"loss_type": "grpo", "scale_rewards": "none"}),
        ("grpo", {"beta": 0.3}, {"loss_type": "grpo", "beta": 0.3, **UNBIASED}),
        ("grpo", {"epsilon": 0.05, "epsilon_high": 0.1}, {"loss_type": "grpo", "epsilon": 0.05, "epsilon_high": 0.1}),
        (
            "grpo",
            {"loss": "dr_grpo"},
            {"loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": LONGEST},
        ),
        ("grpo", {"loss": "dapo", "mask_cut_off": False}, {"loss_type": "dapo", "epsilon_high": 0.28}),
        (
            "grpo",
            {"loss": "dapo", "mask_cut_off": False, "beta": 0.1, "epsilon_high": 0.05},
            {"loss_type": "dapo", "epsilon_high": 0.05, "beta": 0.1, **UNBIASED},
        ),
        (
            "grpo",
            {"loss": "gspo"},
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        ),
        (
            "grpo",
            {"loss": "gspo", "epsilon": 0.1, "epsilon_high": 0.1, "beta": 0.2},
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1, "beta": 0.2, **UNBIASED},
        ),
        ("grpo", {"loss": "cispo", "beta": 0.1}, {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.1, **UNBIASED}),
        ("grpo", {"loss": "cispo", "epsilon_high": 1.02}, {"loss_type": "cispo", "epsilon_high": 1.02}),
        ("rloo", {"beta": 0.0}, {"beta": 0.0}),
        ("rloo", {}, {"beta": 0.05}),
        ("rloo", {"beta": 0.3, "normalize": True}, {"beta": 0.3, "normalize_advantages": True}),
        ("rloo", {"epsilon": 0.1, "epsilon_high": 0.4}, {"beta": 0.05, "epsilon": 0.1, "epsilon_high": 0.4}),
    ],
)  # fmt: skip
def test_the_loss_of_several_iterations_is_that_of_trl(
    trl_oracle: Any, ours: Any, theirs: Any, task: str, own: dict[str, Any], trls: dict[str, Any]
) -> None:
    found, expected = ours(task, num_iterations=2, **own), theirs(task, num_iterations=2, **trls)
    trl_oracle.assert_same(found, expected, TERMS)


@pytest.mark.parametrize(("task", "trls"), [("grpo", {"loss_type": "grpo", **UNBIASED}), ("rloo", {})])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_iteration_too_at_any_temperature(
    trl_oracle: Any,
    ours: Any,
    theirs: Any,
    weights: tuple[Weights, Weights],
    task: str,
    trls: dict[str, Any],
    temperature: float,
) -> None:
    options = {"weights": (weights[0], weights[0]), "beta": 0.1, "temperature": temperature}
    trl_oracle.assert_same(ours(task, **options), theirs(task, **options, **trls), TERMS)


@pytest.mark.parametrize(
    ("task", "own", "trls"),
    [
        ("grpo", {"mask_cut_off": True}, {"loss_type": "grpo"}),
        ("grpo", {"loss": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("rloo", {"mask_cut_off": True}, {}),
    ],
)
def test_candidates_that_were_cut_off_need_not_train(
    trl_oracle: Any, ours: Any, theirs: Any, task: str, own: dict[str, Any], trls: dict[str, Any]
) -> None:
    found = ours(task, num_iterations=2, beta=0.0, **own)
    expected = theirs(task, num_iterations=2, beta=0.0, mask_truncated_completions=True, **trls)
    constant = 0.0
    if task == "rloo":  # see the beginning of this file
        grouped = torch.tensor(REWARDS).reshape(PROMPTS, GROUP)
        others = (grouped.sum(dim=1, keepdim=True) - grouped) / (GROUP - 1)
        constant = -float((grouped - others).reshape(-1)[list(CUT_OFF)].sum()) / len(REWARDS)
        assert abs(constant) > 1e-3
    trl_oracle.assert_same(found._replace(texts=[]), expected._replace(texts=[], loss=expected.loss - constant), TERMS)


@pytest.mark.parametrize(
    ("own", "trls"),
    [
        ({}, {"loss_type": "grpo"}),
        (
            {"loss": "dapo", "mask_cut_off": False, "beta": 0.1},
            {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.1, **UNBIASED},
        ),
        ({"loss": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    ],
)
def test_what_another_engine_draws_is_weighed_as_trl_does(
    trl_oracle: Any,
    ours: Any,
    theirs: Any,
    tiny_model_dir: Path,
    drawn: Any,
    weights: tuple[Weights, Weights],
    own: dict[str, Any],
    trls: dict[str, Any],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model.load_state_dict(dict(weights[0]))
    draw, logps = random.Random(1), []
    for prompt, ids in zip(drawn.prompts, drawn.answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        exact = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        logps.append([value + draw.gauss(0, 0.1) for value in exact.tolist()])
    drawn = drawn._replace(sampler_logps=logps)
    options = {"drawn": drawn, "num_iterations": 2}
    found = ours("grpo", importance_cap=1.05, **options, **own)
    trl_oracle.assert_same(found, theirs("grpo", **options, **TRUNCATED, **trls))


@pytest.mark.parametrize(
    ("task", "trls", "rewarded"),
    [
        ("grpo", {"loss_type": "grpo"}, OTHERS),  # all but the longest
        ("rloo", {"beta": 0.0}, OTHERS),
        ("grpo", {"loss_type": "grpo"}, [4, 5]),  # fewer than micro-batches
    ],
)
def test_a_candidate_without_a_reward_is_left_out(
    trl_oracle: Any, ours: Any, theirs: Any, drawn: Any, task: str, trls: dict[str, Any], rewarded: Sequence[int]
) -> None:
    longest = max(range(len(REWARDS)), key=lambda it: len(drawn.prompts[it]) + len(drawn.answers[it]))
    assert longest not in OTHERS
    rewards = [reward if index in rewarded else float("nan") for index, reward in enumerate(REWARDS)]
    options = {"drawn": drawn._replace(rewards=rewards), "num_iterations": 2}
    found, expected = ours(task, beta=0.0, **options), theirs(task, **options, **trls)
    assert len(found.texts) == max(len(rewarded), 3)  # a batch that has none keeps step with the others
    counted = len(REWARDS) / len(rewarded)
    gradients = {name: it * counted for name, it in expected.gradients.items()}
    trl_oracle.assert_same(found, trl_oracle.Step(found.texts, expected.loss * counted, gradients), TERMS)
