"""A model that is evaluated: its loss and metrics as in a training, and rewards of its answers as in a sampling run."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from swiftplug.config.evaluation import EvaluationConfig
from swiftplug.data.prepare import PreparedData
from swiftplug.data.read.report import SplitReport
from swiftplug.errors import UserError
from swiftplug.evaluation.figures import Figure
from swiftplug.formatting import format_command
from swiftplug.plugin import Labels
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.console import RunProgress, on_disk, plugin_fact, print_facts, print_line
from swiftplug.runs.errors import naming_plugins
from swiftplug.runs.folder import Marker, is_adapter_run, plugin_record
from swiftplug.runs.model import load_config, own_labels
from swiftplug.sampling.ledger import Ledger
from swiftplug.sampling.run import SampleRun
from swiftplug.sampling.selection import Selection
from swiftplug.sampling.statistics import Summary, row_figures
from swiftplug.training.arguments import training_arguments
from swiftplug.training.model import load_model_to_train
from swiftplug.training.page.curves import BOOKKEEPING
from swiftplug.training.reference import add_reference_logps, load_reference
from swiftplug.training.setup import read_data, set_up
from swiftplug.training.trainer import PlugTrainer


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
            trainer = PlugTrainer(args, model, self.progress, data, load_reference(args, model))
            trainer.remove_callback(PrinterCallback)
            try:
                metrics = trainer.evaluate()
            finally:
                if trainer.rollouts is not None:
                    trainer.rollouts.engine.close()
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
