import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from swiftplug_plugins_example.callback import ProgressFile


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), report_to="none")


def log(callback: ProgressFile, args: TrainingArguments, step: int, logs: dict[str, float]) -> None:
    state = TrainerState(global_step=step, max_steps=50)
    callback.on_log(args, state, TrainerControl(), logs=logs)


def test_the_file_has_the_last_loss_and_the_best(args: TrainingArguments, tmp_path: Path) -> None:
    callback = ProgressFile()
    for step, loss in [(10, 2.5), (20, 1.5), (30, 2.0)]:
        log(callback, args, step, {"loss": loss})
    log(callback, args, 30, {"eval_loss": 0.1})  # an evaluation's log is no training loss
    assert json.loads((tmp_path / "progress.json").read_text()) == {"step": 30, "of": 50, "loss": 2.0, "best_loss": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_a_checkpoint_keeps_the_best_loss(args: TrainingArguments, tmp_path: Path) -> None:
    callback = ProgressFile(file="watch.json")
    log(callback, args, 10, {"loss": 1.0})
    saved = json.loads(json.dumps(callback.state()))  # what Trainer writes to trainer_state.json
    resumed = ProgressFile.from_state(saved)
    log(resumed, args, 20, {"loss": 3.0})
    assert json.loads((tmp_path / "watch.json").read_text())["best_loss"] == 1.0
