"""Ctrl-C and SIGTERM say what is saved and how to go on."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from swiftplug.errors import Interrupted
from tests import forks

STOPPING = """
import os, signal
from transformers import TrainerCallback
from swiftplug.plugin import register_callback

@register_callback("stopping")
class Stopping(TrainerCallback):
    def __init__(self, event: str = "step_end", step: int = 2, number: int = 0):
        self.step, self.number = step, number
        setattr(self, f"on_{event}", self.stop)

    def stop(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if self.number:
                os.kill(os.getpid(), self.number)
            else:
                raise KeyboardInterrupt
"""
SETS = ["training.save_strategy=steps", "training.save_steps=1", "training.per_device_train_batch_size=4"]


@pytest.mark.parametrize(
    ("event", "step", "words"),
    [
        ("step_end", 2, "stopped at step 2 of 4; checkpoint-1 is saved; go on: swiftplug train"),
        ("step_end", 1, "stopped at step 1 of 4; no checkpoint is saved yet; begin again: swiftplug train"),
        ("prediction_step", 2, "stopped at step 2 of 4; checkpoint-1 is saved"),
        ("train_begin", 0, "stopped at step 0 of 4; no checkpoint is saved yet"),
        ("train_end", 4, "stopped at step 4 of 4; checkpoint-4 is saved"),
    ],
)
def test_in_any_phase(run: Any, chat_file: Path, tmp_path: Path, event: str, step: int, words: str) -> None:
    sets = [*SETS, "training.eval_strategy=steps", "training.eval_steps=1"]
    options = [f"callbacks.stopping.event={event}", f"callbacks.stopping.step={step}"]
    with pytest.raises(Interrupted) as raised:
        run("r", [*sets, *options], plugins=STOPPING, callbacks=["stopping"], eval_dataset=[f"{chat_file}#2"])
    assert words in str(raised.value)
    assert not [*(tmp_path / "r").glob(".saving-*")]


def test_before_the_first_step(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swiftplug.training.run.load_model_to_train", interrupt)
    with pytest.raises(Interrupted, match="stopped before the first step; the same command starts the run again"):
        run("r")
    assert not (tmp_path / "r").exists()


def test_the_printed_command_goes_on(tiny_model_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(STOPPING)
    command = ["train", "--model", str(tiny_model_dir), "--dataset", f"{chat_file}#16"]
    command += ["--plugin", "p.py", "--callback", "stopping", "--set", "callbacks.stopping.number=15"]
    command += [*(f"--set={each}" for each in SETS), "--output-dir", "it's a run"]
    done = forks.run(*command, cwd=tmp_path)
    assert done.returncode == 143
    (line,) = [line for line in done.stderr.splitlines() if "kernels" not in line]
    assert line.startswith("stopped at step 2 of 12; checkpoint-1 is saved; go on: ")
    assert shlex.split(line.partition("go on: ")[2]) == ["swiftplug", "train", "it's a run", "--resume"]
