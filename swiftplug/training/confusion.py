"""The confusion matrix of a classifier, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import EvalPrediction

from swiftplug.runs.folder import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ft2font import FT2Font

_LONGEST_NAME = 24
MOST_COUNTS = 40  # classes; of more, cells are too small for a number


class ConfusionMatrix:
    """Counts how often each class is taken for each, in the last evaluation.

    Args:
        names: The names of the classes.

    Attributes:
        counts: `(C, C)` numbers of rows, by right and by predicted class; None before the first evaluation.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.counts: np.ndarray | None = None

    def compute(self, prediction: EvalPrediction) -> dict[str, float]:
        """Count, as a metric that returns nothing: `predictions` and `label_ids` are `(N,)` class numbers."""
        size = len(self.names)
        pairs = np.asarray(prediction.label_ids) * size + np.asarray(prediction.predictions)
        self.counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
        return {}

    def draw(self, path: Path) -> None:
        """Write the picture of the last evaluation; cells are coloured by their share of the row's class."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # a dry run should not wait for it
        from matplotlib.figure import Figure

        assert self.counts is not None
        size = len(self.names)
        side = min(max(0.42 * size, 2.6), 22)
        figure = Figure(figsize=(side + 2.4, side + 1.8), dpi=110, layout="constrained")
        self._plot(figure.subplots(), self.counts)
        with atomic_path(path) as partial:
            FigureCanvasAgg(figure).print_png(partial)

    def _plot(self, axes: "Axes", counts: np.ndarray) -> None:
        size = len(self.names)
        shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names, families = _drawable(self.names)
        axes.set_xticks(range(size), names, rotation=0 if size <= 3 else 90, family=families, fontsize=8)
        axes.set_yticks(range(size), names, family=families, fontsize=8)
        axes.set_xlabel("predicted", fontsize=9)
        axes.set_ylabel("label", fontsize=9)
        right, total = int(counts.trace()), int(counts.sum())
        axes.set_title(f"last evaluation: {right:,} of {total:,} right", fontsize=10)
        for (row, column), count in np.ndenumerate(counts) if size <= MOST_COUNTS else ():
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=7)


def _drawable(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names, shortened, and fonts that can draw them; the number of a class whose name no font can draw."""
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    fonts = ["DejaVu Sans"]
    missing = {*"".join(names)} - _characters(get_font(fontManager.findfont(FontProperties(family=fonts))))
    # Matplotlib's Last Resort has a box for every character.
    others = {each.fname: each.name for each in fontManager.ttflist if "LastResort" not in each.fname}
    for file, name in sorted(others.items()) if missing else ():
        found = missing & _characters(get_font(file))
        if found and name not in fonts:
            fonts.append(name)
            missing -= found
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    return [f"class {place}" if missing & {*name} else _plain(name) for place, name in enumerate(shown)], fonts


def _characters(font: "FT2Font") -> set[str]:
    return {*map(chr, font.get_charmap())}


def _plain(name: str) -> str:
    """The name without what Matplotlib reads as mathematics, or as the end of a line."""
    return " ".join(name.split()).replace("$", r"\$")
