"""The curves of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from swiftplug.runs.folder import atomic_path

# What an evaluation logs besides its loss and metrics.
NO_METRIC = {
    "eval_loss",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
}


def draw_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the losses and the learning rate over the steps, and the metrics where there are some.

    Args:
        history: The log history of a Trainer: dictionaries with `step` and what was logged at it.
        path: Where to write the PNG; it appears whole or not at all.
    """
    metrics = sorted({name for entry in history for name in entry if name.startswith("eval_")} - NO_METRIC)
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
