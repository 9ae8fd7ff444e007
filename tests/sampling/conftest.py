"""What tests of sampling share: rows of questions, and the command line."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import forks

DICE = Path(__file__).with_name("dice.py")

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def questions(tmp_path: Path) -> Callable[..., Path]:
    """Write so many questions whose answers are 0, 1, 2, 3, 0, ..."""

    def write(count: int, name: str = "questions.jsonl") -> Path:
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"问题 {number}: a die 🎲?"},
                    {"role": "assistant", "content": f"{number % 4}"},
                ]
            }
            for number in range(count)
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def swiftplug(tmp_path: Path) -> Command:
    """Run the command line in the test's folder."""

    return lambda *arguments: forks.run(*arguments, cwd=tmp_path)


@pytest.fixture
def sample(swiftplug: Command) -> Command:
    """Run `swiftplug sample` with the plugins of `dice.py`."""
    return lambda *arguments: swiftplug("sample", "--plugin", DICE, *arguments)


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
