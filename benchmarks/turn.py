"""Lets the processes of gpu.py start side by side and compute one after another: `--plugin turn.py --callback turn`."""

import fcntl
import os
from typing import Any

from transformers import TrainerCallback

from swiftplug.plugin import register_callback

_held: list[int] = []


def take_turn() -> None:
    """Wait until no other process is being measured; the turn is given up when this process exits, with its memory."""
    if (path := os.environ.get("BENCHMARK_TURN")) and not _held:
        _held.append(os.open(path, os.O_WRONLY | os.O_CREAT))
        fcntl.flock(_held[0], fcntl.LOCK_EX)


@register_callback("turn")
class Turn(TrainerCallback):
    """Waits before the first step."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Wait."""
        take_turn()
