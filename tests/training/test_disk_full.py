"""A disk that fills while a checkpoint is written: one line, and what was saved before is unharmed."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests import forks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def train(folder: Path, model: Path, data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["train", f"--model={model}", f"--dataset={data}", f"--output-dir={folder}"]
    command += ["--set=training.save_steps=2", "--set=training.max_steps=12", *options]
    return forks.run(*command, cwd=data.parent, SWIFTPLUG_CACHE=str(data.parent / "cache"))


def test_a_full_disk_costs_only_what_was_being_written(small_disk: Path, tiny_model_dir: Path, chat_file: Path) -> None:
    folder = small_disk / "run"
    broken = train(folder, tiny_model_dir, chat_file)
    assert broken.returncode == 2
    (line,) = broken.stderr.splitlines()
    assert line.startswith("error: ")
    assert "the disk is full; free some space and continue with --resume" in line
    saved = sorted(folder.glob("checkpoint-*"))
    assert saved
    for checkpoint in saved:
        AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not list(folder.glob(".saving-*"))

    for checkpoint in saved[:-1]:
        shutil.rmtree(checkpoint)
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    resumed = train(folder, tiny_model_dir, chat_file, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from {saved[-1]}" in resumed.stdout
