"""What a person sees of a run: a live line and a line for each log, `log.jsonl`, and the curves as a picture."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback, TrainerState

from swiftplug.formatting import format_duration, format_number, format_rate
from swiftplug.runs.console import print_line
from swiftplug.runs.folder import atomic_path, write_atomically

LOG = "log.jsonl"

# What Trainer logs besides losses, learning rates and metrics.
BOOKKEEPING = {
    "epoch",
    "total_flos",
    "num_input_tokens_seen",
    "grad_norm",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_tokens_per_second",
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
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
        hidden = console.quiet or not console.is_terminal
        self.progress = Progress(*columns, console=console, transient=True, disable=hidden)
        self.task = self.progress.add_task("starting", start=False)
        self.started = 0.0
        self.first_step = 0
        self.first_tokens = 0
        self.evaluated = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the clock; steps and tokens of an earlier part of the run do not count."""
        self.started = time.monotonic()
        self.first_step, self.first_tokens = state.global_step, state.num_input_tokens_seen
        self.progress.start_task(self.task)
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move the live line on."""
        self.progress.update(self.task, completed=state.global_step, description=self._pace(state))

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Show that an evaluation is under way."""
        self.evaluated += 1
        self.progress.update(self.task, description=f"evaluating, batch {self.evaluated}")

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write a line of what was logged."""
        shown = {name: value for name, value in kwargs["logs"].items() if name not in {*BOOKKEEPING, "train_loss"}}
        if not state.is_world_process_zero or not shown:
            return
        evaluation = any(name.startswith("eval_") for name in shown)
        self.evaluated = 0
        step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        values = "  ".join(
            f"{name} {format_number(value) if isinstance(value, float) else value}" for name, value in shown.items()
        )
        pace = "" if evaluation else f"  {self._pace(state, with_step=False)}"
        style = "bold green" if evaluation else ""
        print_line(self.console, f"{step}  {values}{pace}", style)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Take the live line away."""
        self.progress.stop()

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *error: object) -> None:
        """Take the live line away when a run breaks off, too."""
        self.progress.stop()

    def _pace(self, state: TrainerState, with_step: bool = True) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        steps = state.global_step - self.first_step
        parts = [f"step {state.global_step}/{state.max_steps}"] if with_step else []
        if steps:
            left = seconds / steps * (state.max_steps - state.global_step)
            tokens = (state.num_input_tokens_seen - self.first_tokens) / seconds
            parts += [
                format_rate(steps, seconds, "step"),
                format_rate(tokens, seconds, "token"),
                f"{format_duration(left)} left",
            ]
        return "  ".join(parts)


class RunLog(TrainerCallback):
    """Appends each entry of the log history to `log.jsonl`, with what the callbacks before it have added.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOG

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Begin with what the checkpoint remembers: lines that a killed run wrote after it are written again."""
        if state.is_world_process_zero:
            write_atomically(self.path, "".join(_line(entry) for entry in state.log_history))

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Append the newest entry."""
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


def draw_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the losses and the learning rate over the steps, and the metrics where there are some.

    Args:
        history: The log history of a Trainer: dictionaries with `step` and what was logged at it.
        path: Where to write the PNG; it appears whole or not at all.
    """
    metrics = sorted(
        {name for entry in history for name in entry if name.startswith("eval_")} - {*BOOKKEEPING, "eval_loss"}
    )
    panels = 3 if metrics else 2
    figure = Figure(figsize=(4.6 * panels, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots(1, panels)
    _plot(axes[0], history, {"loss": "training", "eval_loss": "evaluation"}, "loss")
    _plot(axes[1], history, {"learning_rate": "learning rate"}, "learning rate")
    if metrics:
        _plot(axes[2], history, {name: name.removeprefix("eval_") for name in metrics}, "metrics")
    with atomic_path(path) as partial:
        FigureCanvasAgg(figure).print_png(partial)


def _plot(axes: Axes, history: Sequence[dict[str, Any]], series: dict[str, str], title: str) -> None:
    for name, label in series.items():
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            steps, values = zip(*points, strict=True)
            marker = "o" if name.startswith("eval_") or len(points) == 1 else None
            axes.plot(steps, values, label=label, marker=marker, markersize=4, linewidth=1.4)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    if len(axes.get_lines()) > 1 or title == "metrics":
        axes.legend(fontsize=8, frameon=False)


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
