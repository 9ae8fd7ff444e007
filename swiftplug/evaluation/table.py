"""The figures of evaluated models as a table on the terminal."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swiftplug.evaluation.figures import Figure, best, difference
from swiftplug.formatting import format_number
from swiftplug.runs.console import print_line


def print_figures(console: Console, models: Sequence[tuple[str, Mapping[str, Figure]]]) -> None:
    """Print a row for each figure and a column for each model, with differences to the first model.

    Args:
        console: Where to print.
        models: The label of each model, and its figures by name.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for label, _ in models:
        table.add_column(Text(label, overflow="fold"), justify="right")
    (_, first), *others = models
    mark, gap = ("*", " ") if others else ("", "")
    for name in dict.fromkeys(name for _, figures in models for name in figures):
        known = [figures.get(name) for _, figures in models]
        top = best(name, [figure and figure.value for figure in known])
        cells = []
        for index, figure in enumerate(known):
            if figure is None:
                cells.append(Text(f"- {gap}", "dim"))
                continue
            is_best = figure.value == top
            cell = Text(f"{_with_error(format_number(figure.value), figure.error)} {mark if is_best else gap}")
            cell.stylize("bold green" if is_best else "")
            if index and name in first:
                apart = difference(figure, first[name])
                sign = "+" if apart.value > 0 else ""
                cell.append(f"\n{_with_error(sign + format_number(apart.value), apart.error)} {gap}", "dim")
            cells.append(cell)
        table.add_row(name, *cells)
    console.print(table)
    notes = (
        ["±: standard error over the rows"]
        if any(it.error is not None for _, all in models for it in all.values())
        else []
    )
    if others:
        notes += ["*: best", f"below: difference to {models[0][0]}"]
    if notes:
        print_line(console, "; ".join(notes), "dim")


def _with_error(value: str, error: float | None) -> str:
    return value if error is None else f"{value} ± {error:.2g}"
