"""From the datasets that a config names to the examples that a trainer batches.

1. Open the datasets, and hold out rows for evaluation if the config asks for it.
2. Encode the rows in parallel, and store the result on disk under a key that covers everything that affects it. Later
   runs with the same data reuse it.
3. Pack the training examples if the config asks for it.

The report says what became of every row.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from itertools import chain, islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerFast

from swiftplug import __version__
from swiftplug.config.schema import DataOptions
from swiftplug.data.batching import Mixture
from swiftplug.data.encode import SPLITTABLE, EncodedRows, RowEncoder
from swiftplug.data.labels import number_labels
from swiftplug.data.packing import packed_batches
from swiftplug.data.read.conversation import RawRow
from swiftplug.data.read.report import DataReport, SplitReport
from swiftplug.data.read.sources import Source, check_columns, concatenate, hold_out, open_source
from swiftplug.data.store import EncodedStore, StoredRows
from swiftplug.data.stream import ExampleStream, Reader
from swiftplug.data.weights import combine
from swiftplug.errors import UserError
from swiftplug.formatting import format_count, format_percent
from swiftplug.plugin import Labels, Rows, Task
from swiftplug.plugin.registry import LoadedPlugin, PluginChoice, Registry
from swiftplug.processes import describe_death, end_with_parent

CHUNK = 256  # number of rows that a process encodes at a time
CHUNKS_ALONE = 4  # so few are encoded sooner than further processes have started, on two free cores
CHUNKS_AHEAD = 2  # per process; a source of any size is read no faster than it is encoded

# The modules that affect how a row is encoded. Plugins have hashes of their own.
CODE = ("data/**/*.py", "plugin/**/*.py")


class PreparedData(NamedTuple):
    """The data of a training run.

    Attributes:
        train: Examples (of streamed data the first ones) with `input_ids`, `labels` (-100 where the weight is 0) and
            `length`; `loss_scale` if either split has weights other than 0 and 1; and `position_ids` if they are
            packed. All are NumPy arrays.
        eval: Examples to evaluate on, never packed; with `prompt_ids`, `opened` and `reference` if a metric generates.
        report: What became of the rows.
        source: The rows to train on, as they are read.
        encoder: What makes examples of them.
        labels: What the labels of rows are, which examples of a task for labelled rows have as `label`.
        prompts: The questions of an online task, as `sample` reads them; its examples are the number of each (`row`)
            and the tokens of its prompt (`length`).
        eval_prompts: Those to evaluate on.
        mixture: How several datasets make an epoch, if they are not shuffled together.
        stream: The examples to train on, if they are streamed.
    """

    train: Dataset
    eval: Dataset | None
    report: DataReport
    source: Source
    encoder: RowEncoder
    labels: Labels | None = None
    prompts: Sequence[Any] = ()
    eval_prompts: Sequence[Any] = ()
    mixture: Mixture | None = None
    stream: ExampleStream | None = None


def open_splits(
    dataset: Sequence[PluginChoice],
    eval_dataset: Sequence[PluginChoice],
    registry: Registry,
    options: DataOptions,
    seed: int,
) -> tuple[list[Source], Source | None]:
    """The rows to train on, by dataset if these are mixed, and those to evaluate on; see `prepare_data`.

    Raises:
        UserError: A dataset is missing or broken.
    """
    train_sources = [open_source(choice, registry, "dataset", options.streaming) for choice in dataset]
    eval_sources = [open_source(choice, registry, "eval_dataset") for choice in eval_dataset]
    check_columns(options.columns, [*train_sources, *eval_sources])
    if options.streaming:
        return train_sources, concatenate(eval_sources) if eval_sources else None
    parts = [concatenate([each]) for each in train_sources] if options.mixes else [concatenate(train_sources)]
    if eval_sources or not options.val_size:
        return parts, concatenate(eval_sources) if eval_sources else None
    rests, held_out = zip(*(hold_out(part, options.val_size, seed) for part in parts), strict=True)
    return [*rests], concatenate(held_out)


def prepare_data(
    *,
    dataset: Sequence[PluginChoice],
    eval_dataset: Sequence[PluginChoice] = (),
    registry: Registry,
    tokenizer: PreTrainedTokenizerFast,
    tools: LoadedPlugin,
    loss_scales: Sequence[LoadedPlugin],
    task: Task,
    options: DataOptions,
    seed: int,
    progress: Callable[[str], AbstractContextManager[Any]],
    generation: bool = False,
    labels: Labels | None = None,
) -> PreparedData:
    """Read, encode and pack the data of a run, or reuse what is stored.

    Args:
        dataset: Datasets to train on; they are concatenated, each packed by itself if they are mixed.
        eval_dataset: Datasets to evaluate on; without any, `options.val_size` may hold out rows of `dataset`.
        registry: Finds dataset plugins.
        tokenizer: A tokenizer with its chat template set.
        tools: The tools format.
        loss_scales: The loss scales; their weights multiply.
        task: What the rows are for.
        options: The `data` section of the config.
        seed: Seed of the choice of held-out rows.
        progress: Shows what is done while a context lasts, which gives an object whose `advance(rows)` counts.
        generation: Whether evaluation generates answers.
        labels: Those of a model that is trained already, for rows with labels; None to find them in the rows.

    Raises:
        UserError: A dataset is missing, empty or broken, or no row of it can be used.
    """
    train_sources, eval_source = open_splits(dataset, eval_dataset, registry, options, seed)
    store = EncodedStore(options.cache_dir)
    loss_scale = combine(loss_scales)

    def encode(source: Source, encoder: RowEncoder) -> StoredRows:
        key = _key(source, encoder, [tools, *loss_scales])
        return store.get(key, lambda report: _encode(source, encoder, options.num_proc, report, progress))

    encoder = RowEncoder(tokenizer, tools.bound, loss_scale, task, options)
    evaluation = encode(eval_source, replace(encoder, generation=generation)) if eval_source else None
    if options.streaming:
        return _streamed(train_sources, encoder, evaluation, store.notes, seed, progress)
    stored = [encode(source, encoder) for source in train_sources]
    report = _joined([each.report for each in stored])
    weighted = report.weighted or (evaluation is not None and evaluation.report.weighted)
    unneeded = [] if weighted else ["loss_scale"]
    parts = [each.examples.remove_columns(unneeded) for each in stored]
    if options.packing:
        suffix = f"packed{'-weighted' if weighted else ''}"
        parts = [
            store.get(f"{each.folder.name}-{suffix}", partial(_packed, part.data.table, options.max_length)).examples
            for each, part in zip(stored, parts, strict=True)
        ]
        report.packed_rows = sum(map(len, parts))
    train_rows = concatenate_datasets(parts) if parts[1:] else parts[0]
    eval_rows = evaluation.examples.remove_columns(unneeded) if evaluation else None
    labelled = number_labels(train_rows, eval_rows, task, labels) if task.rows is Rows.LABELLED else None
    if labelled is not None:
        train_rows, eval_rows = labelled.train, labelled.eval
    mixture = None
    notes = [*(labelled.notes if labelled else []), *store.notes]
    if options.mixes:
        mixture = _mixture([each.name for each in train_sources], [*map(len, parts)], options)
        notes += _describe(mixture, [each.name for each in train_sources])
    return PreparedData(
        train=train_rows.with_format("numpy"),
        eval=eval_rows.with_format("numpy") if eval_rows is not None else None,
        report=DataReport(
            report,
            evaluation.report if evaluation else None,
            stored[0].folder.parent if stored[1:] else stored[0].folder,
            notes,
        ),
        source=concatenate(train_sources),
        encoder=encoder,
        labels=labelled.labels if labelled else None,
        mixture=mixture,
    )


def _streamed(
    sources: Sequence[Source],
    encoder: RowEncoder,
    evaluation: StoredRows | None,
    notes: Sequence[str],
    seed: int,
    progress: Callable[[str], AbstractContextManager[Any]],
) -> PreparedData:
    """Read the first rows of streamed data; the report goes on counting while the others are read."""
    options, together = encoder.options, concatenate(sources)
    shown = [*islice(together.read(), CHUNK)]  # by the page; to read them later would move the readers
    together = replace(together, read=lambda: iter(shown))
    readers, counts = [Reader(sources)], [options.shuffle_buffer]
    if isinstance(options.mix, list):
        readers = [Reader([each]) for each in sources]
        counts = [*(Mixture.by_weight(counts, options.mix).draws or ())]
        if not all(counts):
            raise UserError(f"data.mix: {options.mix} gives a dataset none of {options.shuffle_buffer} rows")
    windows = Windows(encoder, evaluation is not None and evaluation.report.weighted)
    stream = ExampleStream(readers, counts, windows, seed, options.group_by_length)
    with progress("encoding the first rows") as activity:
        train = stream.first()
        activity.advance(windows.report.rows)
    check_usable(together, windows.report, encoder.task, options)
    first = f"the first {format_count(windows.report.rows, 'row')}"
    return PreparedData(
        train=train,
        eval=evaluation.examples.remove_columns(windows.unneeded).with_format("numpy") if evaluation else None,
        report=DataReport(
            windows.report,
            evaluation.report if evaluation else None,
            evaluation.folder if evaluation else None,
            [*notes, f"train is streamed: above are {first}, others are read as they are needed"],
        ),
        source=together,
        encoder=encoder,
        stream=stream,
    )


@dataclass
class Windows:
    """Encodes the windows of streamed rows.

    Attributes:
        encoder: What makes examples of rows.
        keeps_weights: Whether to keep weights in any case; else if some of the first window are neither 0 nor 1.
        report: The counts of all rows so far, and the hash of the first window.
    """

    encoder: RowEncoder
    keeps_weights: bool
    report: SplitReport = field(default_factory=SplitReport)

    @property
    def unneeded(self) -> list[str]:
        """The columns that examples do not have."""
        return [] if self.keeps_weights else ["loss_scale"]

    def __call__(self, rows: Iterator[RawRow]) -> pa.Table:
        digest, batches, before = hashlib.sha256(), [], self.report.rows
        for examples, counts in map_chunks(self.encoder.encode_rows, hashed(rows, digest), 1):
            self.report.add(counts)
            batches.append(examples)
        if not before:
            self.report.sha256 = digest.hexdigest()
            self.keeps_weights = self.keeps_weights or self.report.weighted
        if self.report.weighted and not self.keeps_weights:
            raise UserError(
                f"data.streaming: tokens behind row {before:,} have weights other than 0 and 1, and none before; "
                "expected some in the first data.shuffle_buffer rows"
            )
        table = pa.Table.from_batches(batches, self.encoder.schema).drop_columns(self.unneeded)
        if self.encoder.options.packing and len(table):
            table = pa.Table.from_batches([*packed_batches(table, self.encoder.options.max_length)])
            self.report.packed_rows = (self.report.packed_rows or 0) + len(table)
        return table


def _joined(reports: Sequence[SplitReport]) -> SplitReport:
    """The counts of several datasets together."""
    if len(reports) == 1:
        return reports[0]
    joined = SplitReport(sha256=hashlib.sha256("".join(each.sha256 for each in reports).encode()).hexdigest())
    for each in reports:
        joined.add(each)
    return joined


def _packed(table: pa.Table, max_length: int, _: SplitReport) -> Generator[pa.RecordBatch, None, None]:
    return packed_batches(table, max_length)


def _mixture(names: Sequence[str], sizes: Sequence[int], options: DataOptions) -> Mixture:
    """How an epoch is made of datasets of these sizes; raises a UserError if one would have no part in it."""
    if options.mix == "order":
        return Mixture(sizes, None)
    root = 1 / (options.mix_temperature or 1)
    weights = options.mix if isinstance(options.mix, list) else [size**root for size in sizes]
    mixture = Mixture.by_weight(sizes, weights)
    for name, weight, draws in zip(names, weights, mixture.draws or (), strict=True):
        if not draws:
            share = format_percent(weight / sum(weights))
            key = "mix" if isinstance(options.mix, list) else "mix_temperature"
            raise UserError(f"data.{key}: {name} gets {share} of {format_count(sum(sizes), 'example')}, which is none")
    return mixture


def _describe(mixture: Mixture, names: Sequence[str]) -> Iterator[str]:
    """What an epoch has of each dataset."""
    for name, size, draws in zip(names, mixture.sizes, mixture.draws or mixture.sizes, strict=True):
        share = format_percent(draws / sum(mixture.sizes))
        yield f"each epoch: {share} from {name}, {draws:,} drawn of {format_count(size, 'example')}"


def _key(source: Source, encoder: RowEncoder, plugins: Sequence[LoadedPlugin]) -> str:
    """A hash of everything that affects how the rows of a source are encoded."""
    tokenizer, options = encoder.tokenizer, encoder.options
    facts = {
        "rows": source.fingerprint,
        "tokenizer": [type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str()],
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat template": tokenizer.chat_template,
        "day": date.today().isoformat() if "strftime_now" in str(tokenizer.chat_template) else None,
        "plugins": [
            f"{each.found.qualified_name} {each.found.version} {each.source_hash} {sorted(each.options.items())}"
            for each in plugins
        ],
        "task": [encoder.task.rows, encoder.task.weights, encoder.task.head, encoder.task.step_separator],
        "settings": [options.max_length, encoder.too_long, options.columns, encoder.generation],
        "code": code_hash(*CODE),
        "versions": [__version__, transformers.__version__, tokenizers.__version__],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def code_hash(*patterns: str) -> str:
    """A hash of the modules of this package whose paths match a pattern."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(chain.from_iterable(map(package.glob, patterns))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _encode(
    source: Source,
    encoder: RowEncoder,
    num_proc: int,
    report: SplitReport,
    progress: Callable[[str], AbstractContextManager[Any]],
) -> Generator[pa.RecordBatch, None, None]:
    """Encode a source; adds up the counts in `report`."""
    digest = hashlib.sha256()
    with progress(f"encoding {source.name}") as activity:
        for examples, counts in map_chunks(encoder.encode_rows, hashed(source.read(), digest), num_proc):
            report.add(counts)
            activity.advance(counts.rows)
            yield examples
    report.sha256 = digest.hexdigest()
    check_usable(source, report, encoder.task, encoder.options)


def check_usable(source: Source, report: SplitReport, task: Task, options: DataOptions) -> None:
    """Raise a UserError if no row of a source can be used."""
    if report.examples:
        return
    if report.shortest_too_long is not None:
        shortens = {Rows.PROMPTS: ""} | dict.fromkeys(SPLITTABLE, " (data.too_long may truncate or split rows)")
        raise UserError(
            f"data.max_length: {options.max_length} is shorter than every usable row of {source.name}; the "
            f"shortest has {report.shortest_too_long} tokens"
            f"{shortens.get(task.rows, ' (data.too_long may truncate rows)')}"
        )
    reason, dropped = max(report.dropped.items(), key=lambda item: item[1].count)
    raise UserError(
        f"{source.name}: {format_count(report.rows, 'row')}, none usable: {reason} "
        f"({format_count(dropped.count, 'row')}): {dropped.examples[0]}"
    )


def hashed(rows: Iterator[RawRow], digest: Any) -> Iterator[RawRow]:
    """The rows, each added to a hash."""
    for row in rows:
        digest.update(json.dumps(row.row, default=str).encode() + b"\n")
        yield row


def map_chunks(
    function: Callable[[list[RawRow]], EncodedRows], rows: Iterator[RawRow], num_proc: int
) -> Iterator[EncodedRows]:
    """Apply a function to chunks of rows, many ones in up to `num_proc` processes; the results come in their order.

    The processes are forked if the system supports it, because functions from a plugin file cannot be pickled. Rows are
    read as needed, never all at once.

    Raises:
        UserError: A process died.
    """
    chunks = _chunks(rows)
    first = [] if num_proc == 1 else list(islice(chunks, CHUNKS_ALONE + 1))
    chunks = chain(first, chunks)
    if len(first) <= CHUNKS_ALONE:
        yield from map(function, chunks)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    start = (_start_worker, (function, os.getpid()))
    with ProcessPoolExecutor(num_proc, multiprocessing.get_context(method), *start) as pool:
        pending: deque[Future[EncodedRows]] = deque()
        pool.submit(os.getpid)  # starts the workers while none has a row to die of
        workers: set[BaseProcess] = {*multiprocessing.active_children()}
        try:
            for chunk in chunks:
                pending.append(pool.submit(_work, chunk))
                workers |= {*multiprocessing.active_children()}
                if len(pending) > CHUNKS_AHEAD * num_proc:
                    yield pending.popleft().result()
            yield from (future.result() for future in pending)
        except BrokenProcessPool:
            for worker in workers:
                worker.join(1)
            # The pool ends the others by SIGTERM.
            codes = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0, -signal.SIGTERM)]
            death = describe_death(codes[0] if codes else -signal.SIGTERM)
            raise UserError(f"data.num_proc: one of the {num_proc} processes that encode rows {death}") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _chunks(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    """Chunks of rows; a short rest joins the last one, for rated rows need others in their chunk."""
    chunk = list(islice(rows, CHUNK))
    while chunk:
        following = list(islice(rows, CHUNK))
        if len(following) < CHUNK // 8:
            chunk, following = chunk + following, []
        yield chunk
        chunk = following


_function: Callable[[list[RawRow]], EncodedRows]


def _start_worker(function: Callable[[list[RawRow]], EncodedRows], parent: int) -> None:
    global _function
    _function = function
    end_with_parent(parent)
    gc.freeze()  # else each collection would go through, and copy, all that the first process had loaded
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one answers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes run in parallel already


def _work(chunk: list[RawRow]) -> EncodedRows:
    return _function(chunk)
