"""`log.jsonl`: Trainer's log history as it grows, one object a line."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swiftplug.runs.folder import write_atomically

LOG = "log.jsonl"


class RunLog(TrainerCallback):
    """Appends each entry of the log history to `log.jsonl`, after the callbacks before it had their say in it.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOG

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with what the checkpoint remembers: lines that a killed run wrote after it are written again."""
        if state.is_world_process_zero:
            write_atomically(self.path, "".join(_line(entry) for entry in state.log_history))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Append the newest entry."""
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
