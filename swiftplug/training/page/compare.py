"""`swiftplug compare`: the curves, figures, configs and plugins of several trainings, side by side.

It reads what the runs have written, and neither loads a model nor imports torch.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swiftplug.config.resume import CONFIG, read_record
from swiftplug.config.schema import TrainConfig
from swiftplug.config.yaml_file import read_config
from swiftplug.errors import UserError, nearest
from swiftplug.formatting import format_duration, format_number, shortest_ends
from swiftplug.runs.console import print_line
from swiftplug.runs.folder import MARKER, locked_folder
from swiftplug.runs.page.page import escaped_json, write_page
from swiftplug.training.page.config import flat_config
from swiftplug.training.page.curves import (
    LOG,
    Evaluation,
    History,
    best_of,
    curve,
    in_order,
    is_better_lower,
)

_MARK = "swiftplug-compare"
_NOT_COMPARED = {"output_dir"}  # every run has its own


class ComparedRun(NamedTuple):
    """A training, as far as it has come.

    Attributes:
        label: The end of its path, as long as it must be to be the only one.
        folder: Its folder.
        state: `finished`, `running`, or `stopped`.
        config: Every key of its config, by its path.
        training: The `training` section of its config.
        record: Its `run.json`.
        history: What it has logged.
        evaluations: Its evaluations.
    """

    label: str
    folder: Path
    state: str
    config: Mapping[str, str]
    training: Mapping[str, Any]
    record: Mapping[str, Any]
    history: History
    evaluations: Sequence[Evaluation]


class FigureRow(NamedTuple):
    """A figure of all runs.

    Attributes:
        name: What it is.
        values: Of each run the value, None if it has none; and a note.
        best: The runs that are best by it, by their places; empty if runs cannot be compared by it.
    """

    name: str
    values: list[tuple[str | None, str]]
    best: set[int]


class Row(NamedTuple):
    """A line of a table that compares runs: what it is, its cells, and whether they are all the same."""

    name: str
    cells: list[str]
    is_same: bool


def compare(paths: Sequence[str], output: Path, console: Console) -> None:
    """Compare runs: print their figures and in what they differ, and write a page with their curves.

    Args:
        paths: The folders of two runs or more; they may be running.
        output: The page; a page that compares the same runs, in any order, is replaced.
        console: Where to print.

    Raises:
        UserError: A folder holds no training, one is given twice, or `output` is another file.
    """
    runs = _read_runs(paths)
    mark = hashlib.sha256("\n".join(sorted(str(run.folder.resolve()) for run in runs)).encode()).hexdigest()
    _check_output(output, mark)
    figures, notes = _figures(runs), _notes(runs)
    tables = {"Config": _config(runs), "Plugins": _plugins(runs), "Data and environment": _environment(runs)}
    _print(console, runs, figures, [row for rows in tables.values() for row in rows if not row.is_same], notes)
    try:
        write_page(
            output,
            "training/page/compare.html.jinja",
            styles=["training/page/page.css"],
            scripts=["training/page/curves.js"],
            kind="swiftplug compare",
            title=" · ".join(run.label for run in runs),
            mark=mark,
            runs=runs,
            figures=figures,
            notes=notes,
            tables=tables,
            curves=escaped_json(
                {
                    "charts": [*_charts(runs)],
                    "clocks": [run.history.clock() for run in runs],
                    "events": [
                        {"run": number, "step": step, "label": f"{run.label}: resumed at step {step:,}"}
                        for number, run in enumerate(runs)
                        for step in run.history.resumed_at
                    ],
                }
            ),
        )
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from error
    print_line(console, f"page with the curves: {output}")


def _read_runs(paths: Sequence[str]) -> list[ComparedRun]:
    folders = [Path(path).expanduser() for path in paths]
    if len(folders) < 2:
        raise UserError(f"RUN: found one run, {paths[0]}, expected two or more to compare")
    for path, folder in zip(paths, folders, strict=True):
        _check_run(path, folder)
    resolved = [folder.resolve() for folder in folders]
    for place, folder in enumerate(resolved):
        if folder in resolved[:place]:
            raise UserError(f"RUN: {paths[place]} is given twice")
    return [_read_run(folder, label) for folder, label in zip(folders, shortest_ends(resolved), strict=True)]


def _check_run(path: str, folder: Path) -> None:
    if not folder.is_dir():
        beside = [each for each in folder.parent.iterdir() if each.is_dir()] if folder.parent.is_dir() else []
        found = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"RUN: {path}: {found}{nearest(path, [str(folder.parent / each.name) for each in beside])}")
    command = read_record(folder).get("run")
    if command not in (None, "train"):
        raise UserError(
            f"RUN: {path}: expected the folder of a training run, found one of swiftplug {command}; to compare what "
            "models answer, use swiftplug evaluate MODEL MODEL"
        )
    if command is None or not (folder / CONFIG).is_file():
        is_checkpoint = (folder.resolve().parent / CONFIG).is_file()
        hint = f"; did you mean {str(folder.parent)!r}?" if is_checkpoint else ""
        raise UserError(f"RUN: {path}: expected the folder of a training run, found no run.json and {CONFIG}{hint}")


def _read_run(folder: Path, label: str) -> ComparedRun:
    values, _ = read_config(str(folder / CONFIG))
    try:  # a key that an earlier version did not have acted as its default does
        given = {key: value for key, value in values.items() if value is not None}
        values = TrainConfig.model_validate(given).plain()
    except ValidationError:
        pass
    record = read_record(folder)
    resumed_at = [command["step"] for command in record.get("commands", []) if "step" in command]
    history = History.read(folder / LOG, resumed_at)
    state = "running" if _is_locked(folder) else "finished" if (folder / MARKER).is_file() else "stopped"
    training = values.get("training") or {}
    return ComparedRun(label, folder, state, flat_config(values), training, record, history, history.evaluations())


def _is_locked(folder: Path) -> bool:
    try:
        with locked_folder(folder):
            return False
    except UserError:
        return True


def _check_output(output: Path, mark: str) -> None:
    """Refuse to replace anything but a page of the same runs."""
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder, expected a file such as {output / 'compare.html'}")
    if output.exists():
        beginning = output.read_text(encoding="utf-8", errors="replace")[:2000]
        if mark not in beginning:
            found = "compares other runs" if _MARK in beginning else "is not a page of swiftplug compare"
            raise UserError(f"--output {output}: exists and {found}; name another file, or remove this one")


def _is_comparable(runs: Sequence[ComparedRun], name: str) -> bool:
    """Whether a value of evaluations means the same in all runs: of the same rows, and of the same loss or scorers."""
    of = {"loss": ("task", "loss", "loss_scale")}
    scored = ("orm", "prm", "prm_reduce") if name == "reward" or name.startswith("pass@") else ()
    keys = [key for run in runs for key in run.config if key.partition(".")[0] in of.get(name, scored)]
    alike = all(len({run.config.get(key) for run in runs}) == 1 for key in keys)
    return alike and len({str(run.record.get("data", {}).get("eval_dataset")) for run in runs}) == 1


def _notes(runs: Sequence[ComparedRun]) -> list[str]:
    """What a reader must know about the figures."""
    measuring = [run for run in runs if run.evaluations]
    notes = [problem for run in runs for problem in run.history.problems]
    notes += [f"{run.label}: has no evaluation" for run in runs if measuring and not run.evaluations]
    for name, other in (("loss", "other tasks, losses or token weights"), ("reward", "other scorers")):
        having = [run for run in measuring if any(name in each.values for each in run.evaluations)]
        if len(having) > 1 and not _is_comparable(having, name):
            why = f"the runs have {other}" if _is_comparable(having, "") else "the runs were evaluated on other rows"
            notes.append(f"no best evaluation {name} is named: {why}")
    return notes


def _figures(runs: Sequence[ComparedRun]) -> list[FigureRow]:
    """The figures of runs."""

    def row(name: str, value: Callable[[ComparedRun], str | None]) -> FigureRow:
        return FigureRow(name, [(value(run), "") for run in runs], set())

    def number(value: float | None) -> str | None:
        return None if value is None else format_number(value)

    def steps(run: ComparedRun) -> str | None:
        return f"{run.history.entries[-1]['step']:,}" if run.history.entries else None

    def tokens(run: ComparedRun) -> str | None:
        seen = run.history.last("num_input_tokens_seen")
        return None if seen is None else f"{seen:,.0f}"

    def reward(run: ComparedRun) -> str | None:
        ends = run.history.ends("reward")
        return number(ends[1] if ends else run.history.last("reward"))

    rows = [row("state", lambda run: run.state), row("steps", steps), row("tokens", tokens)]
    rows += [
        row("duration", lambda run: None if run.history.seconds is None else format_duration(run.history.seconds)),
        row("tokens per second", lambda run: None if run.history.speed is None else f"{run.history.speed:,.0f}"),
        row("reward, the last tenth", reward),
        row("loss at the end", lambda run: number(run.history.last("loss"))),
    ]
    logged = in_order(name for run in runs for name in run.history.names() if name.startswith("eval_"))
    for name in (each.removeprefix("eval_") for each in logged):
        best = [best_of(run.evaluations, name, run.training) for run in runs]
        values = [each.values[name] if each else None for each in best]
        having = [value for value in values if value is not None]
        if not having:
            continue
        measuring = [run for run, value in zip(runs, values, strict=True) if value is not None]
        top = (min if is_better_lower(name, measuring[0].training) else max)(having)
        marked = len({*having}) > 1 and _is_comparable(measuring, name)
        cells = [(number(each.values[name]), f"at step {each.step:,}") if each else (None, "") for each in best]
        rows.append(
            FigureRow(
                f"best evaluation {name.replace('_', ' ')}",
                cells,
                {place for place, value in enumerate(values) if value == top} if marked else set(),
            )
        )
    return [each for each in rows if any(value for value, _ in each.values)]


def _config(runs: Sequence[ComparedRun]) -> list[Row]:
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [_row(key, (run.config.get(key, "") for run in runs)) for key in keys if key not in _NOT_COMPARED]


def _plugins(runs: Sequence[ComparedRun]) -> list[Row]:
    """Of each plugin the version and the beginning of the hash of its source, in each run."""
    found: dict[str, dict[int, str]] = {}
    for number, run in enumerate(runs):
        for plugin in run.record.get("plugins", []):
            name = f"{plugin['kind'].replace('_', ' ')} {plugin['name'].removeprefix('swiftplug:')}"
            text = f"{plugin['version'] or ''} {(plugin['source_sha256'] or '')[:10]}".strip()
            found.setdefault(name, {})[number] = text
    return [_row(name, (cells.get(place, "") for place in range(len(runs)))) for name, cells in found.items()]


def _environment(runs: Sequence[ComparedRun]) -> list[Row]:
    def facts(run: ComparedRun) -> dict[str, str]:
        record = run.record
        data = {key: f"{each['rows']:,} rows {each['sha256'][:10]}" for key, each in record.get("data", {}).items()}
        rest = {name.replace("_", " "): record.get(name) for name in ("git_commit", "python", "platform", "processes")}
        return {**data, **record.get("versions", {}), **{name: str(value or "") for name, value in rest.items()}}

    found = [facts(run) for run in runs]
    return [
        _row(name, (each.get(name, "") for each in found)) for name in dict.fromkeys(n for each in found for n in each)
    ]


def _row(name: str, cells: Iterable[str]) -> Row:
    shown = [*cells]
    return Row(name, shown, len({*shown}) == 1)


def _charts(runs: Sequence[ComparedRun]) -> Iterable[dict[str, Any]]:
    """A chart for each value, with a curve for each run that has it."""
    names = in_order(name for run in runs for name in run.history.names())
    for name in names:
        is_eval = name.startswith("eval_")
        curves = (curve(run.history, name, run.label, number, run=number) for number, run in enumerate(runs))
        title = ("evaluation " if is_eval else "") + name.removeprefix("eval_").replace("_", " ")
        yield {"title": title, "wide": name == names[0], "curves": [each for each in curves if each["x"]]}


def _print(
    console: Console,
    runs: Sequence[ComparedRun],
    figures: Sequence[FigureRow],
    differences: Sequence[Row],
    notes: Sequence[str],
) -> None:
    """Print the figures, and in what the runs differ."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", overflow="fold")
    for run in runs:
        table.add_column(Text(run.label, overflow="fold"), justify="right", overflow="fold")
    for figure in figures:
        cells = []
        for place, (value, note) in enumerate(figure.values):
            is_best = place in figure.best
            cell = Text(f"{'-' if value is None else value}{' *' if is_best else ''}", "bold green" if is_best else "")
            cells.append(cell.append(f"\n{note}", "dim") if note else cell)
        table.add_row(figure.name, *cells)
    table.add_section()
    for row in differences:
        table.add_row(Text(row.name, "cyan"), *(Text(cell or "-") for cell in row.cells))
    console.print(table)
    if any(figure.best for figure in figures):
        print_line(console, "*: best", "dim")
    if not differences:
        print_line(console, "config, plugins, data and environment are the same")
    for note in notes:
        print_line(console, f"note: {note}")
