"""What a person sees of a run: a live line and a line for each log, `log.jsonl`, and the curves as a picture."""

import json
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerState

from swiftplug.formatting import format_number
from swiftplug.runs.console import RunProgress
from swiftplug.runs.folder import atomic_path, write_atomically
from swiftplug.training.page.curves import BOOKKEEPING, DETAILS, LOG

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS_PER_ROW = 4
# In inches; margins are at the left, right, bottom and top. Having them found out draws all labels twice more.
_PANEL_SIZE = 4.6, 3.4
_PANEL_MARGINS = 0.75, 0.15, 0.5, 0.4


class ProgressLine(TrainerCallback):
    """Shows step, rate, tokens per second and the time left, and writes a line for each log.

    Args:
        progress: Where to show it.
    """

    def __init__(self, progress: RunProgress) -> None:
        self.progress = progress
        self.tokens = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the clock; steps and tokens of an earlier part of the run do not count."""
        self.tokens = state.num_input_tokens_seen
        self.training = self.progress.start("first step", "step", state.max_steps, done=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Count a step and its tokens."""
        self.training.doing = "training"
        self.training.advance(token=state.num_input_tokens_seen - self.tokens)
        self.tokens = state.num_input_tokens_seen

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write a line of what was logged."""
        hidden = {*BOOKKEEPING, *DETAILS, *(f"eval_{name}" for name in DETAILS), "train_loss"}
        shown = {name: value for name, value in kwargs["logs"].items() if name not in hidden}
        if not state.is_world_process_zero or not shown:
            return
        evaluation = any(name.startswith("eval_") for name in shown)
        step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        values = [
            f"{name} {format_number(value) if isinstance(value, float) else value}" for name, value in shown.items()
        ]
        pace = [] if evaluation or self.training.live else self.training.pace()  # the live line has it
        self.progress.print_line("  ".join([step, *values, *pace]), "bold green" if evaluation else "")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Take the live line away."""
        self.progress.end(self.training)


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
    """Draw the losses, the learning rate and all other values over the steps, each on axes of its own.

    Args:
        history: The log history of a Trainer: dictionaries with `step` and what was logged at it.
        path: Where to write the PNG; it appears whole or not at all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a dry run should not wait for it
    from matplotlib.figure import Figure

    logged = {name for entry in history for name, value in entry.items() if isinstance(value, float | int)}
    measured = {name.removeprefix("eval_") for name in logged - BOOKKEEPING - {"step", "train_loss"}}
    titles = ["loss", "learning_rate", *sorted(measured - {"loss", "learning_rate"})]
    columns = min(len(titles), _PANELS_PER_ROW)
    rows = math.ceil(len(titles) / columns)
    width, height = _PANEL_SIZE
    left, right, bottom, top = _PANEL_MARGINS
    figure = Figure(figsize=(width * columns, height * rows), dpi=110)
    figure.subplots_adjust(
        left=left / (width * columns),
        right=1 - right / (width * columns),
        bottom=bottom / (height * rows),
        top=1 - top / (height * rows),
        wspace=(left + right) / (width - left - right),
        hspace=(bottom + top) / (height - bottom - top),
    )
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax, title in zip_longest(axes, titles):
        if title is None:
            ax.set_axis_off()
        else:
            _plot(ax, history, title)
    with atomic_path(path) as partial:
        FigureCanvasAgg(figure).print_png(partial)


def _plot(axes: "Axes", history: Sequence[dict[str, Any]], title: str) -> None:
    """One value over the steps: in training, and at evaluations."""
    from matplotlib.ticker import MaxNLocator

    for name, label in ((title, "training"), (f"eval_{title}", "evaluation")):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            steps, values = zip(*points, strict=True)
            marker = "o" if name.startswith("eval_") or len(points) == 1 else None
            axes.plot(steps, values, label=label, marker=marker, markersize=4, linewidth=1.4)
    axes.set_title(title.replace("_", " "), fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins="auto"))
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    if len(axes.get_lines()) > 1:
        axes.legend(fontsize=8, frameon=False)


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
