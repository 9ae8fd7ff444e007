"""From the datasets that a config names to the examples that a trainer batches.

1. The datasets are found, and if asked, rows to evaluate on are drawn from them.
2. Each row is brought into one form, rendered, tokenized and weighed, in parallel, and kept on disk by a key of all
   that changes the outcome: the next run with the same data begins here.
3. The training examples are packed, if asked.

Nothing is dropped in silence: what became of every row is in the report.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache
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

import swiftplug
from swiftplug.config.data_options import DataOptions
from swiftplug.data.cache import Cache, write_rows
from swiftplug.data.encoder import RowEncoder
from swiftplug.data.packing import packed_batches
from swiftplug.data.parallel import map_chunks
from swiftplug.data.read.report import DataReport, SplitReport
from swiftplug.data.read.sources import Source, open_source
from swiftplug.data.read.split import hold_out, joined
from swiftplug.data.weights import combine
from swiftplug.errors import UserError, nearest
from swiftplug.plugin.registry import LoadedPlugin, Registry
from swiftplug.plugin.registry.choice import PluginChoice


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


class _Split(NamedTuple):
    key: str
    rows: Dataset
    report: SplitReport


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
    """Read, encode and pack the data of a run, or take it from the cache.

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
    train_source, eval_source = joined(train_sources), joined(eval_sources) if eval_sources else None
    if eval_source is None and options.val_size:
        train_source, eval_source = hold_out(train_source, options.val_size, seed)

    store = Cache(options.cache_dir)
    too_long = options.too_long or ("split" if task == "pt" else "drop")
    facts = _facts(tokenizer, [tools, *loss_scales], [task, options.max_length, too_long, options.columns])

    def encode(source: Source, generation: bool) -> _Split:
        key = _key(source.fingerprint, facts, generation)
        encoder = RowEncoder(
            tokenizer,
            tools.bound,
            combine([each.bound for each in loss_scales]),
            task,
            options.max_length,
            too_long,
            options.columns,
            generation,
        )
        cached = store.get(key, lambda path: _write_encoded(path, source, encoder, options.num_proc).to_json())
        return _Split(key, cached.rows, SplitReport.from_json(cached.facts))

    train = encode(train_source, False)
    evaluation = encode(eval_source, generation) if eval_source else None
    report = DataReport(train.report, evaluation.report if evaluation else None, store.notes)

    weighted = train.report.weighted or (evaluation is not None and evaluation.report.weighted)
    train_rows = _with_weights(train.rows, weighted)
    if options.packing:
        key = _key(train.key, "packed", weighted)
        table = train_rows.data.table
        packed = store.get(key, lambda path: _write_packed(path, table, options.max_length))
        train_rows = packed.rows
        report.train.packed_rows = len(train_rows)
    return PreparedData(
        train=train_rows.with_format("numpy"),
        eval=_with_weights(evaluation.rows, weighted).with_format("numpy") if evaluation else None,
        report=report,
    )


def _write_encoded(path: Path, source: Source, encoder: RowEncoder, num_proc: int) -> SplitReport:
    report = SplitReport()

    def batches() -> Iterator[pa.RecordBatch]:
        for chunk in map_chunks(encoder, source.read(), num_proc):
            report.add(chunk.report)
            progress.update(line, completed=report.rows, refresh=True)
            yield from chunk.examples

    with _progress() as progress:
        line = progress.add_task(f"encoding {source.name}", total=None)
        write_rows(path, batches())
    _check_usable(source.name, report, encoder.max_length)
    return report


def _progress() -> Progress:
    """A line on the terminal while it lasts; nothing where there is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}: {task.completed:,} rows"), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)


def _write_packed(path: Path, table: pa.Table, max_length: int) -> dict[str, Any]:
    write_rows(path, packed_batches(table, max_length))
    return {}


def _with_weights(rows: Dataset, weighted: bool) -> Dataset:
    return rows if weighted else rows.remove_columns("loss_scale")


def _check_usable(name: str, report: SplitReport, max_length: int) -> None:
    if report.examples:
        return
    if report.shortest_too_long is not None:
        raise UserError(
            f"data.max_length: {max_length} is shorter than every usable row of {name}; the shortest has "
            f"{report.shortest_too_long} tokens (data.too_long may truncate or split rows)"
        )
    reason, dropped = max(report.dropped.items(), key=lambda item: item[1].count)
    raise UserError(
        f"{name}: none of its {report.rows} rows can be used: {reason} ({dropped.count} rows): {dropped.examples[0]}"
    )


def _check_columns(columns: dict[str, str], sources: Sequence[Source]) -> None:
    """Refuse to rename a column that no dataset has, by their first rows."""
    firsts = [row.row for source in sources if columns for row in islice(source.read(), 1)]
    known = {name for row in firsts if isinstance(row, dict) for name in row}
    for old in columns:
        if firsts and old not in known:
            raise UserError(f"data.columns: no dataset has a column {old!r}{nearest(old, known)}")


def _facts(tokenizer: PreTrainedTokenizerFast, plugins: Sequence[LoadedPlugin], settings: list[Any]) -> dict[str, Any]:
    """All that changes what a row is encoded to, the row aside."""
    used = [
        [plugin.found.qualified_name, plugin.found.version, plugin.source_hash, repr(sorted(plugin.options.items()))]
        for plugin in plugins
    ]
    template = tokenizer.chat_template
    return {
        "code": _code_hash(),
        "libraries": [transformers.__version__, tokenizers.__version__],
        "tokenizer": [type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str()],
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat template": template,
        "day": date.today().isoformat() if "strftime_now" in str(template) else None,  # it writes the date
        "plugins": used,
        "settings": settings,
    }


@cache
def _code_hash() -> str:
    """Of this program itself, so that no version of it reads what another encoded."""
    digest = hashlib.sha256()
    for file in sorted(Path(swiftplug.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _key(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
