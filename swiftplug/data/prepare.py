"""From the datasets that a config names to the examples that a trainer batches.

1. The datasets are found, and if asked, rows to evaluate on are drawn from them.
2. Each row is encoded, in parallel, and kept on disk under a key of all that changes the outcome: the next run with the
   same data begins here.
3. The training examples are packed, if asked.

Nothing is dropped in silence: what became of every row is in the report.
"""

import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerFast

from swiftplug.config.schema import DataOptions
from swiftplug.data.encode import EncodedRows, RowEncoder
from swiftplug.data.packing import packed_batches
from swiftplug.data.read.conversation import RawRow
from swiftplug.data.read.report import DataReport, SplitReport
from swiftplug.data.read.sources import Source, concatenate, hold_out, open_source
from swiftplug.data.store import EncodedStore, StoredRows
from swiftplug.data.weights import combine
from swiftplug.errors import UserError, nearest
from swiftplug.plugin.registry import LoadedPlugin, PluginChoice, Registry

CHUNK = 256  # rows that a process encodes at a time
CHUNKS_AHEAD = 2  # per process, so that a source of any size is read no faster than it is encoded

# The modules that decide what a row is encoded to, from the package's folder; plugins come with hashes of their own.
CODE = ("data/**/*.py", "plugin/loss.py", "plugin/loss_scale.py", "plugin/tools_format.py")


class PreparedData(NamedTuple):
    """The data of a training run.

    Attributes:
        train: Examples with `input_ids`, `labels` (-100 where the weight is 0), `length`, where there are weights other
            than 0 and 1 in either split `loss_scale`, and where they are packed `position_ids`; as NumPy arrays.
        eval: Examples to evaluate on, never packed; for metrics that generate also with `prompt_ids` and `reference`.
        report: What became of the rows.
    """

    train: Dataset
    eval: Dataset | None
    report: DataReport


def prepare_data(
    *,
    dataset: Sequence[PluginChoice],
    eval_dataset: Sequence[PluginChoice] = (),
    registry: Registry,
    tokenizer: PreTrainedTokenizerFast,
    tools: LoadedPlugin,
    loss_scales: Sequence[LoadedPlugin],
    task: Literal["pt", "sft"],
    options: DataOptions,
    seed: int,
    generation: bool = False,
) -> PreparedData:
    """Read, encode and pack the data of a run, or take it from the store.

    Args:
        dataset: What to train on; several are concatenated.
        eval_dataset: What to evaluate on; if there is none, `options.val_size` may hold out rows of `dataset`.
        registry: Knows the dataset plugins.
        tokenizer: With the chat template to use.
        tools: The tools format.
        loss_scales: What weighs the tokens, combined as by `+`.
        task: What the rows are to be used for.
        options: The `data` section of the config.
        seed: Of the draw of rows to hold out.
        generation: Whether evaluation generates answers.

    Raises:
        UserError: A dataset is missing, empty or broken, or no row of it can be used.
    """
    train_sources = [open_source(choice, registry, "dataset") for choice in dataset]
    eval_sources = [open_source(choice, registry, "eval_dataset") for choice in eval_dataset]
    _check_columns(options.columns, [*train_sources, *eval_sources])
    train_source, eval_source = concatenate(train_sources), concatenate(eval_sources) if eval_sources else None
    if eval_source is None and options.val_size:
        train_source, eval_source = hold_out(train_source, options.val_size, seed)

    store = EncodedStore(options.cache_dir)
    loss_scale = combine([each.bound for each in loss_scales])

    def encode(source: Source, generation: bool) -> StoredRows:
        encoder = RowEncoder(tokenizer, tools.bound, loss_scale, task, options, generation)
        key = _key(source, encoder, [tools, *loss_scales])
        return store.get(key, lambda report: _encode(source, encoder, options.num_proc, report))

    train = encode(train_source, False)
    evaluation = encode(eval_source, generation) if eval_source else None
    weighted = train.report.weighted or (evaluation is not None and evaluation.report.weighted)
    train_rows = train.examples if weighted else train.examples.remove_columns("loss_scale")
    if options.packing:
        table = train_rows.data.table
        key = f"{train.folder.name}-packed{'-weighted' if weighted else ''}"
        train_rows = store.get(key, lambda _: packed_batches(table, options.max_length)).examples
        train.report.packed_rows = len(train_rows)
    eval_rows = evaluation and (evaluation.examples if weighted else evaluation.examples.remove_columns("loss_scale"))
    return PreparedData(
        train=train_rows.with_format("numpy"),
        eval=eval_rows.with_format("numpy") if eval_rows is not None else None,
        report=DataReport(train.report, evaluation.report if evaluation else None, train.folder, store.notes),
    )


def _check_columns(columns: dict[str, str], sources: Sequence[Source]) -> None:
    """Refuse to rename a column that no dataset has, by their first rows."""
    firsts = [row.row for source in sources if columns for row in islice(source.read(), 1)]
    known = {name for row in firsts if isinstance(row, dict) for name in row}
    for old in columns:
        if firsts and old not in known:
            raise UserError(f"data.columns: no dataset has a column {old!r}{nearest(old, known)}")


def _key(source: Source, encoder: RowEncoder, plugins: Sequence[LoadedPlugin]) -> str:
    """A hash of all that changes what the rows of a source are encoded to."""
    tokenizer, options = encoder.tokenizer, encoder.options
    template = tokenizer.chat_template
    package = Path(__file__).parents[1]
    facts = {
        "rows": source.fingerprint,
        "tokenizer": [type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str()],
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat template": template,
        "day": date.today().isoformat() if "strftime_now" in str(template) else None,  # it writes the date
        "plugins": [_plugin_facts(plugin) for plugin in plugins],
        "settings": [encoder.task, options.max_length, encoder.too_long, options.columns, encoder.generation],
        "code": _hash_files(file for pattern in CODE for file in package.glob(pattern)),
        "libraries": [transformers.__version__, tokenizers.__version__],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _plugin_facts(plugin: LoadedPlugin) -> list[Any]:
    """What decides how a plugin acts: its source, with the modules beside it in its package, and its options."""
    file = Path(plugin.source_file) if plugin.source_file else None
    beside = file.parent.glob("*.py") if file and (file.parent / "__init__.py").exists() else []
    options = repr(sorted(plugin.options.items()))
    return [plugin.found.qualified_name, plugin.found.version, plugin.source_hash, _hash_files(beside), options]


def _hash_files(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _encode(
    source: Source, encoder: RowEncoder, num_proc: int, report: SplitReport
) -> Generator[pa.RecordBatch, None, None]:
    """The examples of a source, with a line on the terminal while they are made; completes the report."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}: {task.completed:,} rows"), TimeElapsedColumn()
    on_terminal = console.is_terminal
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not on_terminal) as progress:
        line = progress.add_task(f"encoding {source.name}", total=None)
        for encoded in map_chunks(encoder.encode_rows, source.read(), num_proc):
            report.add(encoded.report)
            progress.update(line, completed=report.rows, refresh=True)
            yield encoded.examples
    if report.examples:
        return
    if report.shortest_too_long is not None:
        raise UserError(
            f"data.max_length: {encoder.options.max_length} is shorter than every usable row of {source.name}; the "
            f"shortest has {report.shortest_too_long} tokens (data.too_long may truncate or split rows)"
        )
    reason, dropped = max(report.dropped.items(), key=lambda item: item[1].count)
    raise UserError(
        f"{source.name}: none of its {report.rows} rows can be used: {reason} ({dropped.count} rows): "
        f"{dropped.examples[0]}"
    )


def map_chunks(
    function: Callable[[list[RawRow]], EncodedRows], rows: Iterator[RawRow], num_proc: int
) -> Iterator[EncodedRows]:
    """Apply a function to chunks of rows in several processes; its results come in the order of the rows.

    The processes are forked where the system can, so that the function need not be picklable: plugins from a file are
    not. Rows are read as they are needed, never all at once.

    Raises:
        UserError: A process died.
    """
    chunks = iter(lambda: list(islice(rows, CHUNK)), [])
    if num_proc == 1:
        yield from map(function, chunks)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(num_proc, multiprocessing.get_context(method), _start_worker, (function,)) as pool:
        pending: deque[Future[EncodedRows]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_work, chunk))
                if len(pending) > CHUNKS_AHEAD * num_proc:
                    yield pending.popleft().result()
            yield from (future.result() for future in pending)
        except BrokenProcessPool:
            raise UserError(f"data.num_proc: one of {num_proc} processes died, perhaps for lack of memory") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_function: Callable[[list[RawRow]], EncodedRows]


def _start_worker(function: Callable[[list[RawRow]], EncodedRows]) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism; threads do not survive a fork


def _work(chunk: list[RawRow]) -> EncodedRows:
    return _function(chunk)
