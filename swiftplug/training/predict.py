"""What a trained classifier or reward model gives for the rows of a dataset.

1. The run's plugins are resolved, its tokenizer is loaded, and the dataset is opened.
2. Rows become tokens as in the run, some thousands at a time.
3. The model is loaded; batches are of rows of similar length.
4. The lines are written in the order of the rows.

Errors in options and data are raised before the model is loaded.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console

from swiftplug.config.schema import TrainConfig
from swiftplug.data.batching import Collator
from swiftplug.data.encode import Example, RowEncoder
from swiftplug.data.labels import class_values
from swiftplug.data.read.formats import REJECTED, to_conversation
from swiftplug.data.read.report import SplitReport
from swiftplug.data.read.sources import Source, check_columns, concatenate, open_source
from swiftplug.data.weights import combine
from swiftplug.errors import UserError
from swiftplug.formatting import format_count
from swiftplug.plugin import Labels
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress, on_disk, print_line
from swiftplug.runs.errors import explaining_interruption, naming_plugins
from swiftplug.runs.folder import Marker, atomic_path
from swiftplug.runs.model import autocast_dtype
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.training.arguments import training_arguments

ROWS_AT_ONCE = 4096  # to group by length
PREDICTION, PROBABILITIES = "prediction", "probabilities"


def predict(config: TrainConfig, *, output: Path | None = None, threshold: float | None = None) -> SplitReport:
    """Predict the labels of the rows of `config.dataset` with the model of the run in `config.output_dir`.

    A line is written for each row that can be used: its own columns, and `prediction`: the class, the list of classes
    that apply, or the number (of a reward model, the reward). With classes, `probabilities` has that of each.

    Args:
        config: The config of the run, with the rows to read as its dataset.
        output: The JSONL file to write, which appears when it is complete; None is the terminal.
        threshold: The probability from which a class applies, in a run with several labels; None is 0.5.

    Returns:
        What became of the rows.

    Raises:
        UserError: The run has no such model, or no row can be used; no file is changed.
        Interrupted: Ctrl-C, or SIGTERM, has stopped it; no file is changed.

    Example:
        >>> predict(load_train_config("runs/topics", {"dataset": ["new.jsonl"]}, []).config, output=Path("out.jsonl"))
    """
    run, console = str(config.output_dir), Console(stderr=True)
    with ExitStack() as stack:
        stack.enter_context(explaining_interruption(lambda: "stopped" if output is None else f"stopped; no {output}"))
        progress = stack.enter_context(RunProgress(console))
        with progress.start("loading plugins and tokenizer"):
            args = _arguments(config, run)
            assert args.labels is not None
            if threshold is not None and args.labels.problem_type != "multi_label_classification":
                raise UserError(f"--threshold: is for several labels per row, and {run} gives one; drop it")
            stack.enter_context(naming_plugins(args.plugins.all()))
            args.load_tokenizer()
            source = _open_dataset(args, output)
        for line in [*args.plugins.registry.notes, *args.notes]:
            print_line(console, line)
        report = SplitReport()
        chunks = filter(None, _encoded(args, source, report))
        first = next(chunks, [])
        if not first:
            left_out = [f"{reason}: {dropped}" for reason, dropped in report.dropped.items()]
            raise UserError(f"{source.name}: {format_count(report.rows, 'row')}, none usable: {'; '.join(left_out)}")
        with progress.start(f"loading {run}", live=on_disk([run])):
            classify = _Classifier(args, args.labels, 0.5 if threshold is None else threshold)
        file, replaced = stack.enter_context(_opened(output)), Counter[str]()
        with progress.start("predicting", "row") as activity:
            for rows in chain([first], chunks):
                for row, found in zip(rows, classify(rows, activity), strict=True):
                    replaced.update(row["row"].keys() & found.keys())
                    file.write(json.dumps({**row["row"], **found}, ensure_ascii=False, default=str) + "\n")
    for line in [*report.lines("rows"), *report.unread.lines()]:
        print_line(console, line)
    for name, count in sorted(replaced.items()):
        print_line(console, f"`{name}` of {format_count(count, 'row')}: replaced by that of this model")
    if output is not None:
        print_line(console, f"predictions: {output}")
    return report


def _arguments(config: TrainConfig, run: str) -> Arguments:
    """The arguments of the run, for its own trained model."""
    plugins = resolve_plugins(config, ("task", "tools"))
    task = plugins.one("task")
    if task.bound.head != "sequence":
        use = (
            f"whose model rates steps; swiftplug sample --prm {run} scores answers with it"
            if task.bound.head == "token"
            else "whose model writes text; swiftplug sample generates answers with it"
        )
        raise UserError(
            f"{run}: is a run of task {task.found.name}, {use}, and predict is for runs of tasks such as seq_cls"
        )
    marker = Marker.read(run)
    if marker is None or marker.head is None:
        raise UserError(f"{run}: has no trained model yet; finish it: swiftplug train {run} --resume")
    model = config.model.model_copy(update={"name": run, "options": {}}) if config.model else None
    used = config.model_copy(update={"model": model})
    args = Arguments(used, plugins, training_arguments(used, run, bool(config.eval_dataset)))
    args.labels = marker.head.labels
    return args


def _open_dataset(args: Arguments, output: Path | None) -> Source:
    config = args.config
    sources = [open_source(choice, args.plugins.registry, "DATASET") for choice in config.dataset]
    # Rows to predict may have no labels.
    check_columns({old: new for old, new in config.data.columns.items() if new != "label"}, sources)
    if output is not None:
        inputs = [Path(choice.name.rpartition("#")[0] or choice.name).expanduser() for choice in config.dataset]
        if any(path.exists() and output.resolve() == path.resolve() for path in inputs):
            raise UserError(f"--output {output}: is the dataset itself; name another file")
        if output.is_dir() or not output.absolute().parent.is_dir():
            what = "is a folder" if output.is_dir() else f"there is no folder {output.parent}"
            raise UserError(f"--output {output}: {what}; name a file to write")
    return concatenate(sources)


def _encoded(args: Arguments, source: Source, report: SplitReport) -> Iterator[list[Example]]:
    """The rows as tokens, in their order, each with its own columns as `row`; those that cannot be used are counted."""
    tokenizer: Any = args.load_tokenizer()
    tools, options = args.plugins.one("tools").bound, args.config.data
    encoder = RowEncoder(tokenizer, tools, combine([]), args.task, options)
    rows = source.read()
    for chunk in iter(lambda: list(islice(rows, ROWS_AT_ONCE)), []):
        report.rows += len(chunk)
        usable = []
        for row in chunk:
            with report.dropping(row.origin):
                conversation = to_conversation(row.row, row.origin, args.task.rows, options.columns)
                conversation.facts["row"] = row.row
                usable.append((conversation,))
                report.unread.count_row({name: conversation.columns.get(name) for name in REJECTED})
        examples = encoder.encode(usable, report, alone=True)
        lengths = [example["length"] for example in examples]
        report.examples, report.tokens = report.examples + len(lengths), report.tokens + sum(lengths)
        report.longest = max(report.longest, *lengths, 0)
        yield examples


class _Classifier:
    """The model, and what its numbers stand for."""

    def __init__(self, args: Arguments, labels: Labels, threshold: float) -> None:
        arguments: Any = args.training_args
        self.device, self.batch_size = arguments.device, arguments.eval_batch_size
        dtype = autocast_dtype(arguments)
        is_whole = dtype == torch.float32
        self.model = args.load_model(torch.float32 if is_whole else None).to(self.device)
        self.autocast: Any = nullcontext() if is_whole else torch.autocast(self.device.type, dtype)
        self.collate = Collator(args.load_tokenizer().pad_token_id)
        self.problem_type, self.threshold = labels.problem_type, threshold
        self.names, self.classes = labels.names, class_values(labels.names)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Example], activity: Any) -> list[dict[str, Any]]:
        """What is predicted of each row."""
        found: dict[int, dict[str, Any]] = {}
        order = sorted(range(len(rows)), key=lambda place: -rows[place]["length"])
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            batch = self.collate([{"input_ids": rows[place]["input_ids"]} for place in places])
            with self.autocast:
                inputs = {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}
                logits = self.model(**inputs).logits.float().cpu()
            found.update(zip(places, map(self._prediction, logits), strict=True))
            activity.advance(len(places))
        return [found[place] for place in range(len(rows))]

    def _prediction(self, logits: torch.Tensor) -> dict[str, Any]:
        """What the `(C,)` logits of a row say."""
        if self.problem_type == "single_label_classification":
            shares = logits.softmax(dim=0)
            prediction = self.classes[int(shares.argmax())]
        elif self.problem_type == "multi_label_classification":
            shares = logits.sigmoid()
            applies = (shares >= self.threshold).tolist()
            prediction = [each for each, is_so in zip(self.classes, applies, strict=True) if is_so]
        else:
            return {PREDICTION: float(f"{logits.item():.7g}")}
        probabilities = {name: round(share, 6) for name, share in zip(self.names, shares.tolist(), strict=True)}
        return {PREDICTION: prediction, PROBABILITIES: probabilities}


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        with atomic_path(output) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror or error}") from error
