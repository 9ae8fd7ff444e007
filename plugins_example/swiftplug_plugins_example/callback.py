"""A callback: writes the progress of the run into a small file that other programs can watch."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


# Any TrainerCallback works. ExportableState adds `state`, which puts `best_loss` into every checkpoint, so that a
# resumed run continues with it.
class ProgressFile(TrainerCallback, ExportableState):
    """Writes `progress.json` in the run's folder: step, number of steps, last loss and best loss.

    Args:
        file: The file's name.
    """

    def __init__(self, file: str = "progress.json") -> None:
        self.file = file
        self.best_loss: float | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Rewrite the file whenever Trainer logs a training loss."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        loss = float(logs["loss"])
        self.best_loss = loss if self.best_loss is None else min(loss, self.best_loss)
        progress = {"step": state.global_step, "of": state.max_steps, "loss": loss, "best_loss": self.best_loss}
        path = Path(str(args.output_dir), self.file)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(progress) + "\n")
        partial.replace(path)  # a reader sees the old file or the new one, never a partial one

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores: how to build the callback again, and its state."""
        return {"args": {"file": self.file}, "attributes": {"best_loss": self.best_loss}}
