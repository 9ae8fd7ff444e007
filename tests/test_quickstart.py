"""The built-in quickstart, as a newcomer runs it: no arguments, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.real
@pytest.mark.timeout(900)
def test_quickstart_learns_arithmetic(tmp_path: Path) -> None:
    environment = {**os.environ, "SWIFTPLUG_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "swiftplug", "train"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert "shards" not in done.stderr  # a bar of a library
    first, *_, last = done.stdout.splitlines()
    assert "built-in quickstart" in first
    assert last.startswith("Next: swiftplug ")
    log = [json.loads(line) for line in (tmp_path / "runs/quickstart/log.jsonl").read_text().splitlines()]
    (evaluation,) = [entry for entry in log if "eval_exact_match" in entry]
    assert evaluation["eval_exact_match"] >= 0.8
    assert (tmp_path / "runs/quickstart/loss.png").stat().st_size > 0
    run_configs(tmp_path, environment, "sample rejection_sampling/sample", "train rejection_sampling/train")
    log = [json.loads(line) for line in (tmp_path / "runs/rejection-trained/log.jsonl").read_text().splitlines()]
    before, after = (entry["eval_exact_match"] for entry in log if "eval_exact_match" in entry)
    assert after >= before + 0.1  # trained on its own answers that were kept, it solves more of the harder problems
    run_configs(tmp_path, environment, "train preferences/dpo", "sample preferences/evaluate")
    answers = [json.loads(line) for line in (tmp_path / "runs/dpo-evaluated/candidates.jsonl").read_text().splitlines()]
    assert sum(answer["scores"]["math"] for answer in answers) / len(answers) >= before + 0.1


def run_configs(folder: Path, environment: dict[str, str], *runs: str) -> None:
    """Run configs one after the other, each given as the command and the config."""
    for command, config in map(str.split, runs):
        path = Path(__file__).parents[1] / "configs" / f"{config}.yaml"
        line = [sys.executable, "-m", "swiftplug", command, str(path)]
        done = subprocess.run(line, cwd=folder, env=environment, text=True, capture_output=True, timeout=800)
        assert done.returncode == 0, done.stderr
