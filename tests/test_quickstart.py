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
    _check_that_the_loop_closes(tmp_path, environment)


def _check_that_the_loop_closes(folder: Path, environment: dict[str, str]) -> None:
    """Trained on its own answers that were kept, the model solves more of the harder problems than before."""
    for command in ("sample", "train"):
        config = Path(__file__).parents[1] / "configs" / "rejection_sampling" / f"{command}.yaml"
        line = [sys.executable, "-m", "swiftplug", command, str(config)]
        done = subprocess.run(line, cwd=folder, env=environment, text=True, capture_output=True, timeout=800)
        assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (folder / "runs/rejection-trained/log.jsonl").read_text().splitlines()]
    before, after = (entry["eval_exact_match"] for entry in log if "eval_exact_match" in entry)
    assert after >= before + 0.1
