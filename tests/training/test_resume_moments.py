"""Moments at which a checkpoint and an evaluation meet: a run that goes on from there misses none and repeats none."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def evaluations(result: Any) -> list[tuple[int, float]]:
    """The steps and losses of the evaluations in a run's log."""
    lines = (result.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["step"], entry["eval_loss"]) for entry in map(json.loads, lines) if "eval_loss" in entry]


def broken_off_after(folder: Path, step: int) -> None:
    """Leave of a finished run what one would leave that was killed right after the checkpoint of a step."""
    for path in folder.iterdir():
        if path.is_dir() and path.name.startswith("checkpoint-") and int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    for path in [*folder.glob("*.safetensors"), folder / "swiftplug.json"]:
        path.unlink()


SETS = ["tuner.lora_dropout=0.3", "training.learning_rate=1e-2", "training.save_strategy=steps"]


@pytest.mark.parametrize(
    ("name", "step", "sets"),
    [
        # Two steps an epoch: a checkpoint of steps falls on the end of an epoch, which evaluates.
        ("epoch's end", 2, ["training.num_train_epochs=3", "training.save_steps=2"]),
        ("run's end", 3, ["training.max_steps=3", "training.save_steps=3"]),
        ("preferences", 2, ["task=dpo", "training.num_train_epochs=3", "training.save_steps=2"]),
        # All weights change, so the reference is a second copy of the model.
        ("preferences, full", 2, ["task=dpo", "training.num_train_epochs=3", "training.save_steps=2"]),
        ("start", 2, ["training.num_train_epochs=2", "training.save_steps=2", "training.eval_on_start=true"]),
    ],
)
def test_no_evaluation_is_missed_or_repeated(
    run: Any, chat_file: Path, pair_file: Path, name: str, step: int, sets: list[str]
) -> None:
    file = pair_file if name.startswith("preferences") else chat_file
    options = {"dataset": [f"{file}#16"], "eval_dataset": [f"{file}#6"]}
    sets = [*sets, *([each for each in SETS if "tuner" not in each] if "full" in name else ["tuner=lora", *SETS])]
    first = run("r", sets, **options)
    (saved,) = first.run_dir.glob("*.safetensors")
    expected, weights = evaluations(first), load_file(saved)
    broken_off_after(first.run_dir, step)
    again = run("r", sets, resume=True, **options)
    assert evaluations(again) == expected
    for key, tensor in load_file(saved).items():
        assert torch.equal(tensor, weights[key]), key


def test_the_best_of_those_that_were_saved_is_left(run: Any, chat_file: Path) -> None:
    # Evaluated at every step and saved at every second: the best of all, the first, was not saved.
    sets = [
        "training.num_train_epochs=3",
        "training.learning_rate=1e-2",
        "training.metric_for_best_model=eval_loss",
        "training.greater_is_better=true",
        "training.eval_strategy=steps",
        "training.eval_steps=1",
        "training.save_strategy=steps",
        "training.save_steps=2",
        "training.save_total_limit=2",
        "training.load_best_model_at_end=true",
    ]
    result = run("r", sets, eval_dataset=[f"{chat_file}#6"])
    losses = dict(evaluations(result))
    assert max(losses, key=lambda step: losses[step]) == 1
    assert sorted(path.name for path in result.run_dir.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert (result.run_dir / "model.safetensors").exists()


def test_the_best_is_found_where_the_folder_was_moved(run: Any, chat_file: Path, tmp_path: Path) -> None:
    sets = [
        "training.num_train_epochs=3",
        "training.learning_rate=0.1",
        "training.greater_is_better=true",
        "training.save_strategy=epoch",
        "training.load_best_model_at_end=true",
        f"output_dir={tmp_path / 'link'}",
    ]
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    first = run("unused", sets, output_dir=None, eval_dataset=[f"{chat_file}#6"])
    expected = (first.run_dir / "model.safetensors").read_bytes()
    state = tmp_path / "place" / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text().replace(str(tmp_path / "link"), str(tmp_path / "elsewhere")))
    broken_off_after(tmp_path / "place", 6)
    again = run("unused", sets, output_dir=None, resume=True, eval_dataset=[f"{chat_file}#6"])
    assert (again.run_dir / "model.safetensors").read_bytes() == expected
