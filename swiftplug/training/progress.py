"""What a person sees of a run: a live line and a line for each log, `log.jsonl`, and the curves as a picture."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerState

from swiftplug.formatting import format_number
from swiftplug.runs.console import RunProgress
from swiftplug.runs.folder import atomic_path, write_atomically
from swiftplug.training.page.curves import BOOKKEEPING, DETAILS, LOG, TOKENS_PER_SECOND, History

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
        drawn: Of a run that draws, the number of candidates for each step, which it counts instead of tokens.
    """

    def __init__(self, progress: RunProgress, drawn: float = 0) -> None:
        self.progress = progress
        self.drawn = drawn
        self.tokens = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the clock; steps and tokens of an earlier part of the run do not count."""
        self.tokens = state.num_input_tokens_seen
        self.training = self.progress.start("first step", "step", state.max_steps, done=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Count a step and its tokens."""
        self.training.doing = "training"
        if self.drawn:
            self.training.advance(candidate=self.drawn)
        else:
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
        if self.drawn:
            values = [*(["evaluation"] if evaluation else []), *_online_values(kwargs["logs"])]
            pace = [pace[-1], pace[0]] if pace else []  # the rate of candidates, and the time left
        self.progress.print_line("  ".join([step, *values, *pace]), "bold green" if evaluation else "")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Take the live line away."""
        self.progress.end(self.training)


def _online_values(logs: Mapping[str, Any]) -> Iterator[str]:
    """What a line says of a step or an evaluation of a run that draws, each as wide as in the other lines."""
    values = {name.removeprefix("eval_"): value for name, value in logs.items()}
    scorers = [name for name in values if name.startswith("rewards/")]
    formats = {
        "reward": "5.3f",
        **(dict.fromkeys(scorers, "5.3f") if len(scorers) > 1 else {}),
        **{name: "6.1%" for name in values if name.startswith("pass@")},
        "length": "5.1f",
        "turns": "3.1f",
        "teaching_groups": "4.0%",
        "cut_off": "4.0%",
        "kl": ".4f",
    }
    for name, form in formats.items():
        if name in values:
            yield f"{name.removeprefix('rewards/').replace('_', ' ')} {values[name]:{form}}"


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

    names = [name for name in History(history).names() if name not in {*BOOKKEEPING, TOKENS_PER_SECOND}]
    titles = [*dict.fromkeys(name.removeprefix("eval_") for name in names)] or ["loss"]
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
