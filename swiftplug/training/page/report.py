"""`report.html`, the page of a training: its figures, curves, evaluations, data, config, plugins and commands."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from swiftplug.config.resume import read_record
from swiftplug.config.schema import TrainConfig
from swiftplug.data.prepare import PreparedData
from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.report import UnreadKeys
from swiftplug.formatting import format_duration, format_number, format_percent
from swiftplug.plugin.registry.errors import one_line
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.folder import changed_plugins
from swiftplug.runs.page.page import escaped_json, write_page
from swiftplug.runs.page.token_weights import weight_classes
from swiftplug.runs.preview_rows import PreviewRow, preview_rows
from swiftplug.sampling.selection import reduced
from swiftplug.training.checkpoint import ANSWERS, CONFUSION, REPORT
from swiftplug.training.confusion import MOST_COUNTS
from swiftplug.training.online.rollouts import Rollouts
from swiftplug.training.page.answers import add_answers, forget_answers, read_answers
from swiftplug.training.page.candidates import shown_steps
from swiftplug.training.page.config import config_lines
from swiftplug.training.page.curves import Evaluation, History, best_of, curve
from swiftplug.training.setup import plan_facts
from swiftplug.training.trainer import PlugTrainer

_SHOWN_ROWS = 3
_SHOWN_FIGURES = 4  # of evaluations
_SHOWN_TOKENS = 400  # of a row
_SHOWN_EVALUATIONS = 40
_LEAST_SECONDS = 30.0  # between two versions of the page
_SHARE = 200  # the time between two versions is so many times that which one takes
_TRAINING, _EVALUATION, _CHOSEN, _REJECTED = 0, 1, 2, 5  # colours


class RunReport(TrainerCallback):
    """Keeps `report.html` and `answers.jsonl` up to date while a run trains; the first process alone writes.

    The page is written again at a log if that takes less than 1 % of the time since the last, and when the run ends,
    however it does. What cannot be written, as the disk is full, ends no run.

    Args:
        run_dir: The run's folder.
        args: The run's arguments.
        data: Its data.
        trainer: The trainer, which holds what the last evaluation gave.

    Attributes:
        error: What ended the run; empty if nothing has, or it was interrupted.
        problems: By the name of a file, why it could not be written: the page last time, the answers at any time.
    """

    def __init__(self, run_dir: Path, args: Arguments, data: PreparedData, trainer: PlugTrainer) -> None:
        self.run_dir = run_dir
        self.args = args
        self.data = data
        self.trainer = trainer
        self.error = ""
        self.problems: dict[str, str] = {}
        self._due = time.monotonic() + _LEAST_SECONDS
        self._rows: list[PreviewRow] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Forget answers that a killed run wrote after its checkpoint: they are given again."""
        if state.is_world_process_zero:
            self._try(ANSWERS, lambda: forget_answers(self.run_dir / ANSWERS, state.global_step))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Add the answers of an evaluation; write the page if it is due."""
        if not state.is_world_process_zero:
            return
        if self.trainer.answers:
            answers, self.trainer.answers = self.trainer.answers, []
            self._try(ANSWERS, lambda: add_answers(self.run_dir / ANSWERS, state.global_step, answers))
        if (started := time.monotonic()) >= self._due:
            self.write()
            ended = time.monotonic()
            self._due = ended + max(_LEAST_SECONDS, _SHARE * (ended - started))

    def write(self, *, ended: bool = False) -> None:
        """Write the page as the run is now, or is left when it has ended."""
        self.problems.pop(REPORT, None)
        self._try(REPORT, lambda: self._write(ended))

    def _try(self, name: str, write: Callable[[], None]) -> None:
        """Call a function that writes a file; no page is worth the run that it shows."""
        try:
            write()
        except OSError as error:
            self.problems[name] = f"{self.run_dir / name} could not be written: {error.strerror or error}"
        except Exception as error:
            self.problems[name] = f"{self.run_dir / name} could not be made: {one_line(error)}"

    def _write(self, ended: bool) -> None:
        rollouts = self.trainer.rollouts
        if self._rows is None:  # of prompts no token trains
            self._rows = [*islice(self._preview(), _SHOWN_ROWS)] if rollouts is None else []
        steps = [] if rollouts is None else _steps(rollouts)
        record, state, config = read_record(self.run_dir), self.trainer.state, self.args.config
        assert isinstance(config, TrainConfig)
        commands = record.get("commands", [])
        resumes = [command for command in commands if "step" in command]
        history = History(state.log_history, [command["step"] for command in resumes])
        classes, style = weight_classes(self._rows)
        evaluations, confusion = history.evaluations(), self.trainer.metrics.confusion
        write_page(
            self.run_dir / REPORT,
            "training/page/report.html.jinja",
            styles=[
                "runs/page/token_weights.css",
                *(["sampling/page/page.css"] if steps else []),
                "training/page/page.css",
            ],
            scripts=["training/page/curves.js", *(["sampling/page/page.js"] if steps else [])],
            more_style=style,
            kind="training",
            title=self.run_dir.resolve().name,
            status=self._status(state, ended),
            error=self.error,
            now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            facts=[*self._facts()],
            main_figures=[
                *_figures(history, evaluations, state, config),
                *_peak_memory(self.args.training_args.device),
            ],
            curves=escaped_json(
                {
                    "charts": charts_of(history),
                    "clocks": [history.clock()],
                    "events": [
                        {"run": 0, "step": each["step"], "label": f"resumed at step {each['step']:,}"}
                        for each in resumes
                    ],
                }
            ),
            measured=_measured(history),
            evaluations=[*_shown_evaluations(evaluations, config)],
            all_evaluations=len(evaluations),
            confusion=confusion if confusion and confusion.counts is not None else None,
            most_classes=MOST_COUNTS,
            picture=CONFUSION,
            answers=read_answers(self.run_dir / ANSWERS),
            steps=steps,
            steps_json=escaped_json(steps),
            scorers=escaped_json([] if rollouts is None else rollouts.reward_names),
            all_steps=0 if rollouts is None else len(rollouts.record.steps),
            rows=self._rows,
            classes=classes,
            most=_SHOWN_TOKENS,
            splits=[*_splits(self.data)],
            notes=[*self.args.notes, *self.data.report.unread_lines(), *self.data.report.notes],
            config_lines=config_lines(config),
            plugins=[*_plugins(record, config)],
            commands=commands,
            record=record,
        )

    def _preview(self) -> Iterable[PreviewRow]:
        """The rows that are trained on, as `swiftplug preview` shows them."""
        for row in self.data.source.read():
            with suppress(RowError):
                shown = preview_rows(self.data.encoder.read(row, UnreadKeys()), self.data.encoder)
                yield from (each for each in shown if not each.dropped)

    def _status(self, state: TrainerState, ended: bool) -> tuple[str, str]:
        steps = f"step {state.global_step:,} of {state.max_steps:,}"
        if self.trainer.saved_final:
            return "finished", "finished"
        return ("stopped", f"stopped at {steps}") if ended else ("training", f"training: {steps}")

    def _facts(self) -> Iterable[tuple[str, str]]:
        """What distinguishes a run from others, as labels and values."""
        config, device = self.args.config, self.args.training_args.device
        assert isinstance(config, TrainConfig)
        plan = dict(plan_facts(self.args, self.data))
        yield "model", str(config.model and config.model.name).removeprefix("swiftplug:")
        yield "task", config.task.name.removeprefix("swiftplug:")
        yield "tuner", config.tuner.name.removeprefix("swiftplug:")
        for label, datasets in (("dataset", config.dataset), ("evaluated on", config.eval_dataset)):
            if datasets:
                names = dict.fromkeys(choice.name.removeprefix("swiftplug:") for choice in datasets)
                yield label, ", ".join(names)
        model: Any = self.trainer.model
        parameters = [*model.parameters()]
        trained = sum(each.numel() for each in parameters if each.requires_grad)
        total = sum(each.numel() for each in parameters)
        yield "parameters", f"{trained:,} of {total:,} trained ({format_percent(trained / total)})"
        for label in ("batch", "reference", "precision"):
            if label in plan:
                yield label, plan[label]
        yield "device", torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        yield "seed", str(config.seed)


def _steps(rollouts: Rollouts) -> list[dict[str, Any]]:
    """The steps of a run that draws, with their candidates."""
    how, record = rollouts.config.prm_reduce, rollouts.record
    return shown_steps(record.path, record.steps, rollouts.judges, lambda reward: reduced(reward, how))


def charts_of(history: History) -> list[dict[str, Any]]:
    """The charts of one run: each value in training and at evaluations, and chosen beside rejected answers."""
    names = history.names()
    charts: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        base, is_eval = name.removeprefix("eval_"), name.startswith("eval_")
        title, _, answer = base.rpartition("/")
        label, color = ("evaluation", _EVALUATION) if is_eval else ("training", _TRAINING)
        if answer in ("chosen", "rejected"):
            base, color = title, {"chosen": _CHOSEN, "rejected": _REJECTED}[answer] + (8 if is_eval else 0)
            label = f"{answer}, eval" if is_eval else answer
        charts.setdefault(base, []).append(curve(history, name, label, color))
    return [
        {"title": title.replace("_", " "), "wide": title == next(iter(charts)), "curves": curves}
        for title, curves in charts.items()
        if title in ("loss", "reward") or sum(len(each["x"]) for each in curves) > 1
    ]


def _measured(history: History) -> list[str]:
    """What evaluations gave."""
    return [name.removeprefix("eval_") for name in history.names() if name.startswith("eval_")]


def _figures(
    history: History, evaluations: Sequence[Evaluation], state: TrainerState, config: TrainConfig
) -> Iterable[tuple[str, str, str]]:
    """The main figures, each as label, value and note."""
    loss, mean, reward = (history.last(name) for name in ("loss", "train_loss", "reward"))
    if ends := history.ends("reward"):
        yield "Reward", format_number(ends[1]), f"of the last tenth of the run, {format_number(ends[0])} of the first"
    elif reward is not None:
        yield "Reward", format_number(reward), "of the first step"
    elif loss is not None:
        yield "Loss", format_number(loss), "at the end" if mean is None else f"at the end, mean {format_number(mean)}"
    elif mean is not None:
        yield "Loss", format_number(mean), "mean of the run"
    names = _measured(history)
    found = ((name, best) for name in names if (best := best_of(evaluations, name, config.training)))
    for name, best in islice(found, _SHOWN_FIGURES):
        last = [each.values[name] for each in evaluations if name in each.values][-1]
        note = "the only evaluation" if len(evaluations) == 1 else f"best, at step {best.step:,}"
        later = f"; {format_number(last)} at the end" if last != best.values[name] else ""
        yield f"Eval {name.replace('_', ' ')}", format_number(best.values[name]), note + later
    of_all = f"of {state.max_steps:,}; " if state.global_step != state.max_steps else ""
    epochs = f"{state.epoch or 0:.2f}".rstrip("0").rstrip(".")
    yield "Steps", f"{state.global_step:,}", f"{of_all}{epochs} epoch{'' if epochs == '1' else 's'}"
    if state.num_input_tokens_seen:
        yield "Tokens", f"{state.num_input_tokens_seen:,}", "trained on, prompts among them"
    if history.seconds:
        yield "Duration", format_duration(history.seconds), "of training and evaluations"
    if history.speed:
        yield "Tokens per second", f"{history.speed:,.0f}", "in training"


def _peak_memory(device: torch.device) -> Iterable[tuple[str, str, str]]:
    """The figure of the highest memory of this process so far, where it is known."""
    if device.type == "cuda":
        gib, where = torch.cuda.max_memory_allocated(device) / 2**30, "allocated on the GPU"
    elif sys.platform == "linux":
        import resource  # which other systems do not have, or count in other units

        gib, where = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "resident"
    else:
        return
    yield "Peak memory", f"{gib:.2f} GiB", f"{where}, of the first process"


def _shown_evaluations(evaluations: Sequence[Evaluation], config: TrainConfig) -> Iterable[tuple[Evaluation, set[str]]]:
    """The last evaluations, those that are best by a value, and some spread over the others; with what each is best in.

    Of a single evaluation nothing is the best.
    """
    names = dict.fromkeys(name for each in evaluations for name in each.values)
    best = {name: best_of(evaluations, name, config.training) for name in names} if len(evaluations) > 1 else {}
    stride = math.ceil(len(evaluations) / _SHOWN_EVALUATIONS) or 1
    for place, each in enumerate(evaluations):
        of = {name for name, found in best.items() if found is each}
        if of or place % stride == 0 or each is evaluations[-1]:
            yield each, of


def _splits(data: PreparedData) -> Iterable[tuple[str, list[tuple[str, str]], list[tuple[str, str, str]]]]:
    """Of each split its name, its counts by name, and by reason how many rows were left out and which."""
    for name, split in (("Training", data.report.train), ("Evaluation", data.report.eval)):
        if split is None:
            continue
        counts = {
            "rows read": split.rows,
            "rows used": split.kept,
            "examples": split.examples if split.examples != split.kept else 0,
            "rated good": split.good,
            "rated bad": split.bad,
            "packed rows": split.packed_rows or 0,
            "rows truncated": split.truncated,
            "rows split": split.split,
            "rows shortened by the chat template": split.shortened,
            "tokens": split.tokens,
            "tokens trained": split.trained_tokens,
            "tokens of the longest": split.longest,
        }
        shown = [(label, f"{count:,}") for label, count in counts.items() if count]
        if split.trained_tokens:
            shown.append(("share of tokens trained", format_percent(split.trained_tokens / split.tokens)))
        dropped = sorted(split.dropped.items(), key=lambda item: -item[1].count)
        yield name, shown, [(reason, f"{each.count:,}", str(each)) for reason, each in dropped]


def _plugins(record: dict[str, Any], config: TrainConfig) -> Iterable[tuple[dict[str, Any], str]]:
    """The recorded plugins, each with the earlier run that had another version of it; empty for none.

    The earlier runs are this one before it was resumed, and the one whose model it trains.
    """
    source = str(config.model and config.model.name)
    before = {
        "an earlier part of this run": [
            each for command in record.get("commands", []) for each in command.get("replaced_plugins", [])
        ],
        source: read_record(Path(source).expanduser()).get("plugins", []),
    }
    for plugin in record.get("plugins", []):
        others = [name for name, plugins in before.items() if changed_plugins(plugins, [plugin])]
        yield plugin, " and ".join(others)
