"""Online tasks learn from the reward alone: a random model soon writes the letters that are rewarded."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tests import forks

LETTERS = """
from swiftplug.plugin import register_orm


@register_orm("letters")
def letters(completions, **kwargs):
    return [sum(letter in "aeiou" for letter in completion[-1]["content"]) for completion in completions]
"""
STEPS = 14


def train(folder: Path, model: Path, *options: str) -> list[dict[str, Any]]:
    """The log of a run that is rewarded for every vowel among eight tokens; a random model writes 0.16 of them."""
    (folder / "letters.py").write_text(LETTERS)
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "Write {name}."}}\n' for name in "abcd"))
    line = ["train", f"--model={model}", "--plugin=letters.py", "--orm=letters", "--dataset=prompts.jsonl"]
    line += ["--max-new-tokens=8", "--output-dir=run", "--set=training.per_device_train_batch_size=64"]
    line += [f"--set=training.max_steps={STEPS}", "--set=training.learning_rate=0.01", "--set=training.logging_steps=1"]
    line += ["--set=training.lr_scheduler_type=constant", "--set=training.save_strategy=no"]
    done = forks.run(*line, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "reward" in entry]


@pytest.mark.parametrize(("task", "seed"), [("grpo", 1), ("grpo", 2), ("grpo", 3), ("rloo", 1), ("ppo", 1)])
def test_the_reward_rises(task: str, seed: int, tiny_model_dir: Path, tmp_path: Path) -> None:
    options = [f"--task={task}", f"--set=seed={seed}"]
    rewards = [entry["reward"] for entry in train(tmp_path, tiny_model_dir, *options)]
    assert len(rewards) == STEPS
    assert fmean(rewards[:2]) < 0.4
    assert fmean(rewards[-2:]) > 1.5
