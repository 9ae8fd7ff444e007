"""A small dataset, and runs made in this process by the function that the command line calls."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from swiftplug.config.load import load_train_config
from swiftplug.training.run import TrainResult, train

Run = Callable[..., TrainResult]


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    """Forty short conversations of varied length, some of two rounds."""
    draw = random.Random(0)
    rows = []
    for number in range(40):
        messages = []
        for _ in range(draw.choice([1, 1, 2])):
            a, b = draw.randrange(90), draw.randrange(90)
            filler = " please" * draw.randrange(12)
            messages.append({"role": "user", "content": f"{number}: {a} + {b}?{filler}"})
            messages.append({"role": "assistant", "content": f"It is {a + b}." + " Yes." * draw.randrange(6)})
        rows.append({"messages": messages})
    return rows


@pytest.fixture
def chat_file(chats: list[dict[str, Any]], write_jsonl: Any) -> Path:
    """The conversations as a JSONL file."""
    path: Path = write_jsonl(chats)
    return path


@pytest.fixture
def run(tiny_model_dir: Path, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train the tiny model: `run(name, sets, plugins=SOURCE, **options)` leaves its folder at `tmp_path / name`."""
    monkeypatch.setenv("SWIFTPLUG_CACHE", str(tmp_path / "cache"))

    def start(
        name: str = "run",
        sets: Sequence[str] = (),
        *,
        plugins: str | None = None,
        resume: bool = False,
        overwrite: bool = False,
        **options: Any,
    ) -> TrainResult:
        if plugins is not None:
            file = tmp_path / "plugins_under_test.py"
            file.write_text(plugins, encoding="utf-8")
            options["plugins.files"] = [str(file)]
        given = {"model": str(tiny_model_dir), "dataset": [f"{chat_file}#16"], "output_dir": str(tmp_path / name)}
        few = ["training.num_train_epochs=1", "training.per_device_train_batch_size=8", "training.save_strategy=no"]
        config = load_train_config(None, {**given, **options}, [*few, *sets]).config
        result = train(config, resume=resume, overwrite=overwrite)
        assert result is not None
        return result

    return start
