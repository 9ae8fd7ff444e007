"""Lets the processes of gpu.py start side by side and compute one after another: `--plugin turn.py --callback turn`."""

import fcntl
import os
from pathlib import Path
from typing import IO, Any

from transformers import TrainerCallback

from swiftplug.plugin import register_callback

_held: list[IO[str]] = []


def take_turn() -> None:
    """Wait until no other process is being measured; the turn is given up when this process exits, with its memory."""
    if (path := os.environ.get("BENCHMARK_TURN")) and not _held:
        file = Path(path).open("a")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        _held.append(file)


@register_callback("turn")
class Turn(TrainerCallback):
    """Waits before the first step."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Wait."""
        take_turn()
