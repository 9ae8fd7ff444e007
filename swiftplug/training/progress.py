"""What a person sees while a run trains: one live line, and a line for each log that stays."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swiftplug.runs.console import format_duration

# Bookkeeping of Trainer's that a person does not watch.
UNTOLD = {
    "epoch",
    "total_flos",
    "num_input_tokens_seen",
    "grad_norm",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_tokens_per_second",
    "train_loss",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
}


class ProgressLine(TrainerCallback):
    """Shows step, loss, rate, tokens per second and time left.

    On a terminal a live line below the lines of the logs; elsewhere the lines alone.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self.started = 0.0
        self.first_step = 0
        self.first_tokens = 0
        self.evaluated = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; steps and tokens of an earlier part of the run do not count."""
        self.started = time.monotonic()
        self.first_step, self.first_tokens = state.global_step, state.num_input_tokens_seen
        if state.is_world_process_zero and self.console.is_terminal:
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.task = self.progress.add_task("starting", total=state.max_steps, completed=state.global_step)
            self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the live line on."""
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step, description=self._pace(state))

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show that an evaluation is under way."""
        self.evaluated += 1
        if self.progress is not None:
            self.progress.update(self.task, description=f"evaluating, batch {self.evaluated}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a line of what was logged."""
        shown = {name: value for name, value in (logs or {}).items() if name not in UNTOLD}
        if not state.is_world_process_zero or not shown:
            return
        evaluation = any(name.startswith("eval_") for name in shown)
        self.evaluated = 0
        step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        values = "  ".join(f"{name} {_number(value)}" for name, value in shown.items())
        pace = "" if evaluation else f"  {self._pace(state, with_step=False)}"
        style = "bold green" if evaluation else ""
        self.console.print(f"{step}  {values}{pace}", style=style, highlight=False, soft_wrap=True, markup=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the live line away."""
        self.stop()

    def stop(self) -> None:
        """Take the live line away, also when a run breaks off."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _pace(self, state: TrainerState, with_step: bool = True) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        steps = state.global_step - self.first_step
        parts = [f"step {state.global_step}/{state.max_steps}"] if with_step else []
        if steps:
            left = seconds / steps * (state.max_steps - state.global_step)
            tokens = (state.num_input_tokens_seen - self.first_tokens) / seconds
            parts += [f"{steps / seconds:.2f} steps/s", f"{tokens:,.0f} tokens/s", f"{format_duration(left)} left"]
        return "  ".join(parts)


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
