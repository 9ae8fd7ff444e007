"""A run killed at any moment and resumed ends with the weights of one that was not, bit for bit."""

import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import forks

SCENARIOS = {
    "lora, length grouping, early_stop": [
        "--tuner=lora",
        "--set=tuner.lora_dropout=0.2",
        "--callback=early_stop",
        "--set=callbacks.early_stop.patience=2",
        "--set=callbacks.early_stop.threshold=0.02",
        "--set=training.eval_strategy=steps",
        "--set=training.eval_steps=2",
        "--set=training.learning_rate=1e-3",
    ],
    "full, random order, lisa, accumulation, two datasets by weight": [
        "--dataset=arithmetic#30",
        "--set=data.mix=[2, 1]",
        "--callback=lisa",
        "--set=callbacks.lisa.interval=3",
        "--set=callbacks.lisa.n_layers=1",
        "--set=data.group_by_length=false",
        "--set=training.gradient_accumulation_steps=2",
        "--set=training.learning_rate=1e-3",
    ],
    "streamed and packed, two datasets by weight, dropout, accumulation": [
        "--dataset=arithmetic#30",
        "--set=data={streaming: true, shuffle_buffer: 16, mix: [2, 1], packing: true, max_length: 256}",
        "--tuner=lora",
        "--set=tuner.lora_dropout=0.2",
        "--set=training.gradient_accumulation_steps=2",
        "--set=training.max_steps=10",
        "--set=training.learning_rate=1e-3",
    ],
    "dpo, lora, reference computed before, accumulation": [
        "--task=dpo",
        "--tuner=lora",
        "--set=tuner.lora_dropout=0.2",
        "--set=reference=precompute",
        "--set=training.gradient_accumulation_steps=2",
        "--set=training.learning_rate=1e-3",
    ],
    "grpo, lora, two steps with one drawing, of which some candidates are not read": [
        "--task=grpo",
        "--set=task.num_iterations=2",
        "--tuner=lora",
        "--orm=length",
        "--set=orm.length.max_chars=18",
        "--set=orm.length.margin_chars=2",
        "--num-return-sequences=3",
        "--max-new-tokens=8",
        "--set=training.gradient_accumulation_steps=2",
        "--set=training.eval_strategy=steps",
        "--set=training.eval_steps=3",
        "--set=training.learning_rate=1e-3",
    ],
    "ppo, lora, dropout, several steps with one drawing": [
        "--task=ppo",
        "--set=task.num_iterations=3",
        "--set=task.beta=0.1",
        "--tuner=lora",
        "--set=tuner.lora_dropout=0.2",
        "--orm=length",
        "--set=orm.length.max_chars=40",
        "--set=orm.length.margin_chars=40",
        "--num-return-sequences=3",
        "--max-new-tokens=8",
        "--set=training.gradient_accumulation_steps=2",
        "--set=training.learning_rate=1e-3",
    ],
}


def start(folder: Path, model: Path, data: Path, scenario: list[str], *extra: str) -> BaseProcess:
    sets = {
        "training.per_device_train_batch_size": 3,
        **({} if "--set=training.max_steps=10" in scenario else {"training.num_train_epochs": 2}),
        "training.save_steps": 2,
        "training.save_total_limit": 3,
        "training.logging_steps": 2,
    }
    options = [f"--set={key}={value}" for key, value in sets.items()]
    options += [f"--model={model}", f"--dataset={data}", f"--eval-dataset={data}#4", f"--output-dir={folder}"]
    return forks.start(folder.parent, "train", *options, *scenario, *extra)


def finish(process: BaseProcess, output: Path) -> None:
    process.join(240)
    assert process.exitcode == 0, output.read_text()


def kill_when(process: BaseProcess, moment: Callable[[], bool], delay: float) -> None:
    """Kill a run some time after something is seen on disk; a run that ended before is none the worse."""
    while process.is_alive() and not moment():
        time.sleep(0.0005)
    time.sleep(delay)
    process.kill()
    process.join()


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_killed_and_resumed_equals_unbroken(
    scenario: list[str], tiny_model_dir: Path, chat_file: Path, pair_file: Path, tmp_path: Path
) -> None:
    data = pair_file if "--task=dpo" in scenario else chat_file
    output = tmp_path / "output.txt"
    finish(start(tmp_path / "unbroken", tiny_model_dir, data, scenario), output)

    broken = tmp_path / "broken"
    draw = random.Random(str(scenario))

    def while_saving() -> bool:
        return any(broken.glob(".saving-*"))

    def steps_done(count: int) -> Callable[[], bool]:
        return lambda: len(list(broken.glob("checkpoint-*"))) >= count

    def final_save() -> bool:
        return any(broken.glob(".saving-final"))

    def begun() -> bool:
        return (broken / "log.jsonl").exists()

    moments = [
        (begun, draw.uniform(0, 0.05)),
        (while_saving, draw.uniform(0, 0.005)),
        (steps_done(2), draw.uniform(0, 0.1)),
        (final_save, 0.0),
    ]
    for number, (moment, delay) in enumerate(moments):
        process = start(broken, tiny_model_dir, data, scenario, *(["--resume"] if number else []))
        kill_when(process, moment, delay)
    finish(start(broken, tiny_model_dir, data, scenario, "--resume"), output)

    (weights,) = [path.name for path in (tmp_path / "unbroken").glob("*.safetensors")]
    heads = [path.relative_to(tmp_path / "unbroken") for path in (tmp_path / "unbroken").glob("*/value_head.*")]
    assert bool(heads) == ("--task=ppo" in scenario)
    for file in [weights, *heads]:
        expected, found = load_file(tmp_path / "unbroken" / file), load_file(broken / file)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    for drawn in (tmp_path / "unbroken").glob("candidates.jsonl"):
        assert (broken / drawn.name).read_bytes() == drawn.read_bytes()
    assert not [*broken.glob(".saving-*"), *broken.glob(".deleting-*")]
    steps = sorted(path.name for path in (tmp_path / "unbroken").glob("checkpoint-*"))
    assert sorted(path.name for path in broken.glob("checkpoint-*")) == steps
