"""Several processes train as one would."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import forks


def train(folder: Path, model: Path, data: str, plugin: Path, *options: str) -> dict[str, torch.Tensor]:
    """The gradients of the first of two steps, the first over eight examples; the run's log is in its folder."""
    sets = ["training.max_steps=2", "training.save_steps=1", "training.logging_first_step=true"]
    command = ["train", f"--model={model}", f"--dataset={data}"]
    command += [
        f"--eval-dataset={data.partition('#')[0]}#5",
        f"--output-dir={folder}",
        f"--plugin={plugin}",
        "--optimizer=recorder",
    ]
    command += ["--set=training.per_device_eval_batch_size=2", "--set=training.eval_steps=1"]
    command += [*(f"--set={each}" for each in sets), *options]
    gradients = folder.with_suffix(".safetensors")
    environment = {"GRADIENTS": gradients, "SWIFTPLUG_CACHE": folder.parent / "cache", "CUDA_VISIBLE_DEVICES": ""}
    done = forks.run(*command, cwd=folder.parent, **{name: str(value) for name, value in environment.items()})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished in") == 1
    return load_file(gradients)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("rows", "options", "logged"),
    [
        # `train_loss` has the second step too, which is not logged.
        (
            12,
            [
                *("--metric=acc", "--loss-scale=uneven", "--set=training.logging_steps=5"),
                *("--dataset=arithmetic#9", "--set=data.mix=[2, 1]"),
            ],
            ["eval_token_acc", "eval_loss"],
        ),
        # Of the last step's one pair the second process gets none.
        (
            9,
            ["--task=dpo", "--set=reference=precompute", "--set=training.logging_steps=1"],
            ["logps/chosen", "eval_logps/rejected", "eval_loss"],
        ),
        # Each process draws two answers to two prompts.
        (
            6,
            [
                *("--task=grpo", "--orm=length", "--num-return-sequences=2", "--max-new-tokens=8"),
                *("--set=task.scale_rewards=batch", "--set=task.loss=dapo", "--set=task.mask_cut_off=false"),
                *("--set=orm.length.max_chars=40", "--set=orm.length.margin_chars=40"),
                "--set=training.logging_steps=1",
            ],
            ["reward", "rewards/length", "entropy", "teaching_groups", "eval_reward", "eval_length"],
        ),
        # Both steps with one drawing: the value head has learned by the second.
        (
            6,
            [
                *("--task=ppo", "--orm=length", "--num-return-sequences=2", "--max-new-tokens=8"),
                *("--set=task.num_iterations=2", "--set=task.value_coefficient=1"),
                *("--set=orm.length.max_chars=40", "--set=orm.length.margin_chars=40"),
                "--set=training.logging_steps=1",
            ],
            ["entropy", "kl", "value_error", "eval_reward", "eval_length"],
        ),
    ],
    ids=["sft", "dpo", "grpo", "ppo"],
)
def test_two_processes_equal_one(
    tiny_model_dir: Path, pair_file: Path, tmp_path: Path, rows: int, options: list[str], logged: list[str]
) -> None:
    places: tuple[Any, ...] = (tiny_model_dir, f"{pair_file}#{rows}", Path(__file__).with_name("recorder.py"))
    one = train(tmp_path / "one", *places, *options, "--set=training.per_device_train_batch_size=8")
    two = train(tmp_path / "two", *places, *options, "--set=training.per_device_train_batch_size=4", "--nproc=2")
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6)
    logs = [
        {
            key: value
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
            for key, value in json.loads(line).items()
        }
        for name in ("one", "two")
    ]
    for key in ("loss", "train_loss", *logged):
        assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-6, abs=1e-5), key
    assert (tmp_path / "two" / "checkpoint-2" / "rng_state_1.pth").exists()
    assert (tmp_path / "two" / "model.safetensors").exists()
