"""An evaluation: metrics and rewards of trained models, without training.

1. Of each model, the plugins are resolved, and the rows are read: what is wrong with the input is found here.
2. The loss and the metrics are computed as an evaluation during a training does.
3. Answers to the same rows are generated and scored as in a sampling run, whose folder they leave.
4. The figures of all models are printed side by side, and written as `evaluation.json`.

Errors in config, plugins and data are raised in step 1; nothing in the folder changes before.
"""

import gc
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback

from swiftplug.config.evaluation import EvaluationConfig, answer_folders, differing_keys
from swiftplug.data.batching import Collator
from swiftplug.data.prepare import PreparedData
from swiftplug.data.read.report import SplitReport
from swiftplug.errors import UserError
from swiftplug.evaluation.figures import Figure, difference
from swiftplug.evaluation.table import print_figures
from swiftplug.formatting import format_command, format_count
from swiftplug.plugin import Labels
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.console import RunProgress, on_disk, plugin_fact, print_facts, print_line
from swiftplug.runs.errors import explaining_interruption, naming_full_disk, naming_plugins
from swiftplug.runs.folder import (
    Marker,
    check_output_folder,
    describe_environment,
    is_adapter_run,
    locked_folder,
    plugin_record,
    run_folder,
    write_atomically,
)
from swiftplug.runs.model import load_config, own_labels
from swiftplug.sampling.ledger import Ledger
from swiftplug.sampling.outputs import PAGE
from swiftplug.sampling.run import LEDGER, SampleRun
from swiftplug.sampling.selection import Selection
from swiftplug.sampling.statistics import Summary, row_figures
from swiftplug.training.arguments import training_arguments
from swiftplug.training.model import load_model_to_train
from swiftplug.training.page.curves import BOOKKEEPING
from swiftplug.training.reference import add_reference_logps, load_reference
from swiftplug.training.setup import read_data, set_up
from swiftplug.training.trainer import PlugTrainer

RESULTS = "evaluation.json"


def evaluate(
    configs: Sequence[EvaluationConfig],
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Evaluate models on the same rows, and print and write their figures side by side.

    Args:
        configs: What is evaluated, and how.
        output_dir: The folder of the evaluation.
        resume: Whether to keep the answers that an interrupted evaluation has left in the folder.
        overwrite: Whether to replace the evaluation in the folder.
        as_json: Whether to print the contents of `evaluation.json`, and all else to stderr, in place of the table.
        dry_run: Whether to print the plan and stop before a model is loaded.

    Returns:
        The contents of `evaluation.json`; None for a dry run.

    Raises:
        UserError: The input is wrong. Files from before are unchanged.
        Interrupted: Ctrl-C, or SIGTERM, has stopped it. What was generated and scored before is kept.

    Example:
        >>> evaluate(load_evaluation_configs(["runs/first"], {"dataset": ["test.jsonl"]}, [], "runs/e"), Path("runs/e"))
    """
    console = Console(stderr=as_json)
    with ExitStack() as stack:
        stack.enter_context(explaining_interruption(lambda: _stopped(output_dir, configs)))
        stack.enter_context(naming_full_disk(output_dir))
        progress = stack.enter_context(RunProgress(console))
        if not dry_run:
            _check_folder(output_dir, configs, resume=resume, overwrite=overwrite)
        models = [
            EvaluatedModel(config, progress, resume=resume, overwrite=overwrite, dry_run=dry_run) for config in configs
        ]
        for model in models:
            model.read_rows()
            if dry_run:
                model.print_plan()
        if dry_run:
            print_line(console, "dry run: nothing was evaluated or written", "bold")
            return None
        stack.enter_context(run_folder(output_dir))
        stack.enter_context(locked_folder(output_dir))
        _check_folder(output_dir, configs, resume=resume, overwrite=overwrite)
        ledgers = [model.open_ledger(stack) for model in models]
        if overwrite:
            _remove(output_dir, configs)
        for model, ledger in zip(models, ledgers, strict=True):
            model.measure()
            if ledger is not None:
                model.answer(ledger)
        results = _results(models)
        write_atomically(output_dir / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    else:
        print_line(console, "")
        print_line(console, "; ".join(_conditions(models)), "dim")
        print_figures(console, [(model.config.label, model.figures) for model in models])
    print_line(console, f"figures: {output_dir / RESULTS}")
    for model in models:
        if model.sampling is not None:
            print_line(console, f"answers of {model.config.label}: {model.sampling.folder / PAGE}")
    return results


class EvaluatedModel:
    """A model, and what an evaluation finds out about it; `evaluate` calls its steps in order.

    Attributes:
        config: What is evaluated, and how.
        figures: The figures so far, by name.
        sampling: The sampling run that generates and scores answers; None if nothing scores any.
    """

    def __init__(
        self, config: EvaluationConfig, progress: RunProgress, *, resume: bool, overwrite: bool, dry_run: bool
    ) -> None:
        self.config = config
        self.progress = progress
        self.figures: dict[str, Figure] = {}
        self.summary: Summary | None = None
        self.data: PreparedData | None = None
        self.weights = None if config.weights is None else Path(config.weights)
        with progress.start("loading plugins and tokenizer"):
            self.args = set_up(config.train, self._found_base())
            self.labels = self._labels()
        self.sampling = None
        if config.sample is not None:
            self.sampling = SampleRun(config.sample, progress, resume=resume, overwrite=overwrite, dry_run=dry_run)

    def _found_base(self) -> Path | None:
        """The base model of a run, where it is not any more where the run's config has it.

        Raises:
            UserError: The run has no trained model yet, or its base model is nowhere to be found.
        """
        config, weights = self.config, self.config.weights
        if weights is None:
            return None
        marker = Marker.read(weights)
        if marker is None:
            finish = format_command("train", config.name, "--resume")
            raise UserError(f"{config.name}: has no trained model yet; finish it ({finish}) or name a checkpoint")
        if config.train.model is None or Path(config.train.model.name).expanduser().exists():
            return None
        base = Path(marker.base_choice(weights)["name"] if is_adapter_run(weights) else weights)
        return base if base.is_dir() else None

    def _labels(self) -> Labels | None:
        """What the head of the model gives numbers for; None if it is that of a language model.

        Raises:
            UserError: The model has no trained head of the kind that the task has.
        """
        kind = self.args.task.head
        if kind == "language":
            return None
        if self.weights is not None:
            marker = Marker.read(self.weights)
            head = marker.head if marker is not None else None
            labels = head.labels if head is not None and head.kind == kind else None
        elif self.args.plugins.model is None:
            labels = own_labels(load_config(self.config.name, self.config.train.model_options), kind)
        else:
            labels = None
        if labels is None:
            task = self.args.plugins.one("task").found.name
            raise UserError(f"{self.config.name}: has no trained head for task {task}, so there is nothing to evaluate")
        return labels

    @property
    def plugins(self) -> list[LoadedPlugin]:
        """The plugins that act."""
        sampling = self.sampling.plugins.all() if self.sampling is not None else []
        known = {(plugin.found.kind, plugin.found.qualified_name) for plugin in self.args.plugins.all()}
        return [
            *self.args.plugins.all(),
            *(plugin for plugin in sampling if (plugin.found.kind, plugin.found.qualified_name) not in known),
        ]

    def read_rows(self) -> None:
        """Encode the rows for the loss and the metrics.

        Rows that have only a question are good for rewards: then there is no loss, which is said.

        Raises:
            UserError: No row can be used.
        """
        like = f" (task, metrics and data options as in {self.config.like})" if self.config.like else ""
        self._say(f"{self.config.name}{like}", "bold")
        self.args.labels = self.labels
        try:
            self.data = read_data(self.args, self.progress, self.labels)
        except UserError as error:
            if self.sampling is None or self.config.sets_metrics:
                raise
            self._say(f"no loss: {error}")
        for line in [*self.args.plugins.registry.notes, *self.args.notes, *self._report_lines()]:
            self._say(line)

    @property
    def report(self) -> SplitReport | None:
        """What became of the rows; None without a loss."""
        return self.data.report.eval if self.data is not None else None

    def _report_lines(self) -> Iterator[str]:
        if self.report is not None:
            yield from self.report.lines("rows")
            if self.sampling is None:  # scorers get all columns
                yield from self.report.unread.lines()

    def _say(self, line: str, style: str = "") -> None:
        print_line(self.progress.console, line, style)

    def print_plan(self) -> None:
        """Read the questions, and print what would be done."""
        print_facts(self.progress.console, map(plugin_fact, self.args.plugins.all()))
        if self.sampling is not None:
            self.sampling.print_plan()

    def open_ledger(self, stack: ExitStack) -> Ledger | None:
        """Read the rows for the answers; None if nothing scores any."""
        if self.sampling is None:
            return None
        self._say(f"answers of {self.config.name}", "bold")
        stack.enter_context(naming_plugins(self.sampling.plugins.all()))
        return stack.enter_context(self.sampling.open_ledger())

    def measure(self) -> None:
        """Compute the loss and the metrics as at an evaluation during a training."""
        if self.data is None or self.data.eval is None:
            return
        args, config, name = self.args, self.config.train, self.config.name
        # Trainer takes the precision from a state that the arguments set, and those of the next model have been made.
        args.training_args = training_arguments(config, str(config.output_dir), True)
        with naming_plugins(args.plugins.all()):
            data = self.data
            if config.reference == "precompute":
                data = add_reference_logps(args, data, self.progress)
            with self.progress.start(f"loading {name}", live=on_disk([name])):
                model = load_model_to_train(args, self.weights)
            trainer = PlugTrainer(
                args,
                model,
                self.progress,
                load_reference(args, model),
                train_dataset=data.train,
                eval_dataset=data.eval,
                data_collator=Collator(args.load_tokenizer().pad_token_id),
            )
            trainer.remove_callback(PrinterCallback)
            metrics = trainer.evaluate()
        for key, value in metrics.items():
            if key not in BOOKKEEPING:
                self.figures[key.removeprefix("eval_")] = Figure(float(value), {})
        del trainer, model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answer(self, ledger: Ledger) -> None:
        """Generate answers, and let the reward models score them."""
        assert self.sampling is not None
        run, config = self.sampling, self.sampling.config
        run.generate_and_score(ledger)
        self.summary = run.write_results(ledger)
        selection, kinds = Selection(config, run.scorers), {scorer.name: scorer.kind for scorer in run.scorers}
        by_name: dict[str, dict[str, float]] = {}
        for row in ledger.rows(range(ledger.count_rows())):
            selection.select(row)
            for name, value in row_figures(row, config.num_return_sequences).items():
                by_name.setdefault(f"{kinds[name]}/{name}" if name in kinds else name, {})[row.id] = value
        self.figures |= {name: Figure.mean(values) for name, values in by_name.items()}

    def record(self) -> dict[str, Any]:
        """What `evaluation.json` says of the model."""
        train, sample = self.config.train, self.config.sample
        sampled = {"num_return_sequences", "max_new_tokens", "temperature", "top_p", "top_k", "system", "prm_reduce"}
        report = self.report
        return {
            "model": self.config.name,
            "label": self.config.label,
            "task": self.args.plugins.one("task").found.qualified_name,
            "dataset": train.plain()["dataset"],
            "rows": None
            if report is None
            else {
                "read": report.rows,
                "used": report.kept,
                "tokens": report.tokens,
                "trained_tokens": report.trained_tokens,
                "dropped": {reason: dropped.count for reason, dropped in report.dropped.items()},
                "sha256": report.sha256,
            },
            "seed": train.seed,
            "plugins": [plugin_record(plugin) for plugin in self.plugins],
            "metrics": {name: figure.value for name, figure in self.figures.items()},
            "standard_errors": {
                name: figure.error for name, figure in self.figures.items() if figure.error is not None
            },
            "sampling": None if sample is None else {key: getattr(sample, key) for key in sorted(sampled)},
            "answers": None if self.summary is None else asdict(self.summary),
        }


def _conditions(models: Sequence[EvaluatedModel]) -> Iterator[str]:
    """What the figures are of."""
    first = models[0]
    yield f"rows: {', '.join(choice.name for choice in first.config.train.dataset)}"
    if first.sampling is not None:
        count = first.sampling.config.num_return_sequences
        answers = format_count(count, "answer")
        yield f"{answers} per question: {dict(first.sampling.facts).get('sampling', '')}".rstrip(": ")
    if keys := differing_keys([model.config for model in models]):
        yield f"each with its run's own {', '.join(keys)}"


def _results(models: Sequence[EvaluatedModel]) -> dict[str, Any]:
    """The contents of `evaluation.json`."""
    first, *others = models
    differences = []
    for other in others:
        found = {
            name: difference(figure, first.figures[name])
            for name, figure in other.figures.items()
            if name in first.figures
        }
        differences.append(
            {
                "of": other.config.label,
                "to": first.config.label,
                "metrics": {name: each.value for name, each in found.items()},
                "standard_errors": {name: each.error for name, each in found.items() if each.error is not None},
            }
        )
    return {
        "command": sys.argv[1:],
        **describe_environment(),
        "models": [model.record() for model in models],
        "differences": differences,
    }


def _check_folder(folder: Path, configs: Sequence[EvaluationConfig], *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that the evaluation must not write into."""
    has_begun = (folder / RESULTS).is_file() or any(_answers(folder, configs))
    check_output_folder(folder, is_own=has_begun, holds_results=has_begun, resume=resume, overwrite=overwrite)


def _answers(folder: Path, configs: Sequence[EvaluationConfig]) -> Iterator[Path]:
    """The folders of answers in the folder of an evaluation: of its models, and of those in `evaluation.json`.

    Other sampling runs there are not its own.
    """
    names = {*answer_folders([config.label for config in configs])}
    with suppress(OSError, ValueError, TypeError, KeyError):
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        names |= {*answer_folders([str(model["label"]) for model in results["models"]])}
    return (ledger.parent for ledger in folder.glob(f"*/{LEDGER}") if ledger.parent.name in names)


def _remove(folder: Path, configs: Sequence[EvaluationConfig]) -> None:
    """Remove what an evaluation has left in its folder, but the answers that will be replaced when others are there."""
    kept = {Path(str(config.sample.output_dir)).name for config in configs if config.sample is not None}
    removed = [answers for answers in _answers(folder, configs) if answers.name not in kept]
    (folder / RESULTS).unlink(missing_ok=True)
    for answers in removed:
        shutil.rmtree(answers)


def _stopped(folder: Path, configs: Sequence[EvaluationConfig]) -> str:
    """What an evaluation that is interrupted has kept, and how to go on."""
    if any(_answers(folder, configs)):
        return f"stopped; the answers so far are kept in {folder}; the same command with --resume goes on"
    return "stopped; the same command starts again"
