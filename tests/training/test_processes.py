"""Several processes train as one would."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import forks

DRAWING = [
    *("--orm=length", "--num-return-sequences=2", "--max-new-tokens=8"),
    *("--set=orm.length.max_chars=40", "--set=orm.length.margin_chars=40"),
]
PACKED = ["--task=pt", "--set=data.packing=true", "--set=data.max_length=256"]
GROUPED = ["--set=data.group_by_length=true", "--metric=nlg", "--set=training.max_steps=4"]
MIXED = ["--dataset=arithmetic#9", "--set=data.mix=[2, 1]"]
EVERY_STEP = "--set=training.logging_steps=1"


def train(
    folder: Path, model: Path, data: Path, rows: int, *options: str, processes: int = 1
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The gradients of the first step, and the weights after two or more; the run's log is in its folder."""
    command = [
        *("train", f"--model={model}", f"--dataset={data}#{rows}", f"--eval-dataset={data}#5"),
        *(f"--output-dir={folder}", f"--plugin={Path(__file__).with_name('recorder.py')}", "--optimizer=recorder"),
        *(f"--set=training.{each}" for each in ("max_steps=2", "save_steps=1", "eval_steps=1")),
        *("--set=training.logging_first_step=true", "--set=training.per_device_eval_batch_size=2"),
        *("--set=optimizer.lr=0.1", *options),
    ]
    gradients = folder.with_suffix(".safetensors")
    environment = {"GRADIENTS": gradients, "SWIFTPLUG_CACHE": folder.parent / "cache", "CUDA_VISIBLE_DEVICES": ""}
    variables = {name: str(value) for name, value in environment.items()}
    done = forks.run(*command, cwd=folder.parent, processes=processes, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished in") == 1
    return load_file(gradients), load_file(next(folder.glob("*model.safetensors")))


def logged(folder: Path) -> dict[str, Any]:
    """The last value of everything that a run has logged."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("rows", "options", "names"),
    [
        # Of the last batch the second process gets one row of four.
        pytest.param(
            *(13, [*PACKED, "--tuner=lora", "--set=tuner.use_dora=true", "--metric=acc"]),
            ["eval_token_acc", "eval_loss"],
            id="pt-packed-dora",
        ),
        # `train_loss` has the second step too, which is not logged.
        pytest.param(
            *(12, [*MIXED, "--metric=acc", "--loss-scale=uneven", "--set=training.logging_steps=5"]),
            ["eval_token_acc", "eval_loss"],
            id="sft-full",
        ),
        pytest.param(
            *(29, [*GROUPED, "--tuner=peft", "--set=tuner.type=vera", "--set=tuner.r=4", EVERY_STEP]),
            ["eval_rougeL", "eval_loss"],
            id="sft-generating-vera",
        ),
        pytest.param(*(12, ["--tuner=freeze", "--set=tuner.train=[layers]", EVERY_STEP]), ["eval_loss"], id="freeze"),
        pytest.param(
            *(12, ["--tuner=peft", "--set=tuner.type=prompt_tuning", "--set=tuner.num_virtual_tokens=3", EVERY_STEP]),
            ["eval_loss"],
            id="prompt",
        ),
        # Of the last step's one pair the second process gets none.
        pytest.param(
            *(9, ["--task=dpo", "--set=reference=precompute", EVERY_STEP]),
            ["logps/chosen", "eval_logps/rejected", "eval_loss"],
            id="dpo-full",
        ),
        pytest.param(
            *(9, ["--task=dpo", "--tuner=ia3", EVERY_STEP]),
            ["logps/chosen", "eval_logps/rejected", "eval_loss"],
            id="dpo-ia3",
        ),
        pytest.param(
            *(9, ["--task=rm", "--tuner=lora", EVERY_STEP]), ["eval_loss", "eval_rewards/accuracies"], id="rm-lora"
        ),
        # Each process draws two answers to two prompts.
        pytest.param(
            6,
            [
                *("--task=grpo", "--set=task.scale_rewards=batch", "--set=task.loss=dapo"),
                *("--set=task.mask_cut_off=false", *DRAWING, EVERY_STEP),
            ],
            ["reward", "rewards/length", "entropy", "teaching_groups", "eval_reward", "eval_length"],
            id="grpo",
        ),
        # Both steps with one drawing: the value head has learned by the second.
        pytest.param(
            6,
            ["--task=ppo", "--set=task.num_iterations=2", "--set=task.value_coefficient=1", *DRAWING, EVERY_STEP],
            ["entropy", "kl", "value_error", "eval_reward", "eval_length"],
            id="ppo",
        ),
    ],
)
def test_two_processes_equal_one(
    tiny_model_dir: Path, pair_file: Path, tmp_path: Path, rows: int, options: list[str], names: list[str]
) -> None:
    places = tiny_model_dir, pair_file, rows
    size = "--set=training.per_device_train_batch_size=4"
    one = train(tmp_path / "one", *places, *options, size, "--set=training.gradient_accumulation_steps=2")
    two = train(tmp_path / "two", *places, *options, size, "--set=training.gradient_accumulation_steps=1", processes=2)
    for tensors, expected in zip(two, one, strict=True):
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-4, atol=1e-6)
    logs = [logged(tmp_path / name) for name in ("one", "two")]
    for key in ("loss", "train_loss", *names):
        assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-6, abs=1e-5), key
    assert (tmp_path / "two" / "checkpoint-2" / "rng_state_1.pth").exists()
