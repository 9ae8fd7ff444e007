"""Several processes train as one would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def train(folder: Path, model: Path, data: Path, plugin: Path, *options: str) -> dict[str, torch.Tensor]:
    """The gradients of the first of two steps, over eight and four examples; the run's log is in its folder."""
    sets = ["training.max_steps=2", "training.save_steps=1", "training.logging_steps=1"]
    command = [sys.executable, "-m", "swiftplug", "train", f"--model={model}", f"--dataset={data}#12"]
    command += [f"--eval-dataset={data}#5", f"--output-dir={folder}", f"--plugin={plugin}", "--optimizer=recorder"]
    command += ["--set=training.per_device_eval_batch_size=2", "--set=training.eval_steps=1", "--metric=acc"]
    command += ["--loss-scale=uneven", *(f"--set={each}" for each in sets), *options]
    gradients = folder.with_suffix(".safetensors")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GRADIENTS": str(gradients),
        "SWIFTPLUG_CACHE": str(folder.parent / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished in") == 1
    return load_file(gradients)


@pytest.mark.timeout(600)
def test_two_processes_equal_one(tiny_model_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    places: tuple[Any, ...] = (tiny_model_dir, chat_file, Path(__file__).with_name("recorder.py"))
    one = train(tmp_path / "one", *places, "--set=training.per_device_train_batch_size=8")
    two = train(tmp_path / "two", *places, "--set=training.per_device_train_batch_size=4", "--nproc=2")
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
    for key in ("eval_loss", "eval_token_acc", "loss", "train_loss"):
        assert logs[1][key] == pytest.approx(logs[0][key], abs=1e-5), key
    assert (tmp_path / "two" / "checkpoint-2" / "rng_state_1.pth").exists()
    assert (tmp_path / "two" / "model.safetensors").exists()
