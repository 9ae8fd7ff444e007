"""A tiny training run: the arguments, the model, the data and the trainer that a plugin gets in a real one."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import PrinterCallback

from swiftplug.config.schema import TrainConfig
from swiftplug.data.batching import Collator
from swiftplug.data.encode import RowEncoder
from swiftplug.data.prepare import PreparedData
from swiftplug.data.read.conversation import RawRow, RowOrigin
from swiftplug.plugin import IGNORED_LABEL, Drawn, LossScale
from swiftplug.plugin.registry import LoadedPlugin, Registry
from swiftplug.plugin.registry.returns import check_estimate
from swiftplug.plugin.task import TASK_KINDS, Rows, Task
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress
from swiftplug.runs.plugins import RunPlugins, resolve_plugins
from swiftplug.training.arguments import training_arguments
from swiftplug.training.model import load_model_to_train
from swiftplug.training.progress import RunLog
from swiftplug.training.reference import load_reference
from swiftplug.training.setup import read_data
from swiftplug.training.trainer import PlugTrainer

# Reached by its name, as a config would: a Llama of some ten thousand parameters.
MODEL = {"name": "swiftplug:tiny", "hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2}

# What a run of an online task draws, by a config that has all that acts in one.
_DRAWING = {"task": "swiftplug:grpo", "orm": "swiftplug:repetition", "num_return_sequences": 2, "max_new_tokens": 8}

_QUESTIONS = ("What is 2 + 2?", "And 3 + 4?", "二加三等于几?", "Add 1, 2 and 3, please.", "1 + 1", "What is 5 - 2?")
_ANSWERS = (
    "4",
    "It is 7.",
    "五👍",
    "Step 1: 1 + 2 = 3\nStep 2: 3 + 3 = 6\n\\boxed{6}",
    "2.",
    "It is 3, I think.",
)
_STEPS = (["1 + 1 = 2", "2 + 2 = 4"], ["3 + 4 = 8"], ["五"], ["1 + 2 = 3", "3 + 3 = 6", "Done."], ["2"], ["3"])


class _Answered(Task):
    """Rows whose answers train."""

    rows = Rows.ANSWERS


class TinyRun:
    """A training of some steps on six rows, with one plugin in place of the built-in one of its kind.

    Args:
        plugin: The plugin.
        folder: An empty folder.
        tuner: The tuner of the run.
        evaluates: Whether it evaluates.
        **training: Further fields of `TrainingArguments`.

    Attributes:
        args: The arguments that plugins get.
    """

    def __init__(
        self,
        plugin: LoadedPlugin,
        folder: str | Path,
        *,
        tuner: str = "swiftplug:full",
        evaluates: bool = False,
        **training: Any,
    ) -> None:
        self.folder = Path(folder)
        rows = self.folder / "rows.jsonl"
        task = plugin.bound if plugin.found.kind == "task" else None
        self._rows = _rows(task)
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in self._rows))
        self._online = task is not None and task.rows is Rows.PROMPTS
        defaults = {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
        }
        config = TrainConfig.model_validate(
            {
                "model": MODEL,
                "dataset": [str(rows)],
                "eval_dataset": [str(rows)] if evaluates else [],
                "output_dir": str(self.folder / "run"),
                "tuner": tuner,
                "plugins": {"allow": []},
                "data": {"cache_dir": str(self.folder / "cache")},
                "training": {**defaults, **training},
                **(_DRAWING if self._online else {}),
            }
        )
        by_kind = {**resolve_plugins(config).by_kind, plugin.found.kind: [plugin]}
        if plugin.found.kind == "task":
            by_kind = {kind: by_kind[kind] for kind in by_kind if kind not in TASK_KINDS - plugin.bound.kinds}
        self.registry = Registry.discover(allow=[])
        plugins = RunPlugins(self.registry, by_kind)
        self.args = Arguments(config, plugins, training_arguments(config, str(config.output_dir), evaluates))
        self.progress = RunProgress(Console(quiet=True))

    @cached_property
    def data(self) -> PreparedData:
        """The encoded rows."""
        with self.progress:
            return read_data(self.args, self.progress)

    def model(self, checkpoint: Path | None = None) -> Any:
        """A new model, as the tuner prepares it, or as a checkpoint has it."""
        return load_model_to_train(self.args, checkpoint)

    def batch(self, rows: Sequence[int] = range(6)) -> dict[str, torch.Tensor]:
        """A batch of some rows."""
        if self._online:
            return {name: value[list(rows)] for name, value in self._candidates.items()}
        return Collator(self.args.load_tokenizer().pad_token_id)([self.data.train[row] for row in rows])

    @cached_property
    def _candidates(self) -> dict[str, torch.Tensor]:
        """The six answers as candidates of an online task, two to a prompt, with what the task makes of rewards."""
        tokenizer: Any = self.args.load_tokenizer()
        encoder = RowEncoder(tokenizer, None, LossScale(), _Answered(), self.args.config.data)
        raw = [RawRow(row, RowOrigin("rows", number)) for number, row in enumerate(self._rows, 1)]
        examples = encoder.encode_rows(raw)[0].to_pylist()
        batch = Collator(tokenizer.pad_token_id)(
            [{name: np.asarray(value) for name, value in it.items() if name != "loss_scale"} for it in examples]
        )
        trains = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED_LABEL, (1, 0))
        zeros, behind = torch.zeros(trains.shape), -2.0 * trains
        rewards = torch.tensor([[1.0, 0.5], [0.25, 0.75], [-1.0, 2.0]])
        drawn = Drawn(rewards, trains, zeros, behind, behind, zeros, lambda tensor: tensor)
        return {
            **batch,
            "reference_logps": behind,
            "values": zeros,
            **check_estimate(self.args.task.estimate(drawn), trains),
        }

    def trainer(self, callbacks: Sequence[Any] = (), checkpoint: Path | None = None) -> PlugTrainer:
        """A trainer with a new model, or with that of a checkpoint."""
        data = self.data  # which tells a model with another head its labels
        model = self.model(checkpoint)
        trainer = PlugTrainer(
            self.args,
            model,
            self.progress,
            data,
            load_reference(self.args, model),
            [*callbacks, RunLog(Path(str(self.args.output_dir)))],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def _rows(task: Task | None) -> list[dict[str, Any]]:
    """Rows that a task reads, of different lengths; without one, conversations."""
    prompts = [[{"role": "user", "content": question}] for question in _QUESTIONS]
    answered: list[dict[str, Any]] = [
        {"messages": [*prompt, {"role": "assistant", "content": answer}]}
        for prompt, answer in zip(prompts, _ANSWERS, strict=True)
    ]
    match None if task is None else task.rows:
        case Rows.PAIRS:
            return [{**row, "rejected_response": f"No: {index}"} for index, row in enumerate(answered)]
        case Rows.RATED:
            return [{**row, "label": index % 3 != 0} for index, row in enumerate(answered)]
        case Rows.LABELLED:
            assert task is not None
            names = task.labels or ("short", "long")
            labels: list[Any] = [names[index % len(names)] for index in range(len(answered))]
            if task.problem == "multi":
                labels = [[label] if index % 2 else [*names] for index, label in enumerate(labels)]
            elif task.problem == "regression":
                labels = [index / 4 for index in range(len(answered))]
            return [{**row, "label": label} for row, label in zip(answered, labels, strict=True)]
        case Rows.STEPS:
            return [
                {"prompt": question, "completions": steps, "labels": [index % 2 == 0 for index in range(len(steps))]}
                for question, steps in zip(_QUESTIONS, _STEPS, strict=True)
            ]
    return answered
