"""`swiftplug preview`: rows as the model will see them, each token with its weight."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, Literal

from swiftplug.config.schema import TrainConfig
from swiftplug.data.encode import RowEncoder
from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.rows import to_conversation
from swiftplug.data.read.sources import concatenate, open_source
from swiftplug.data.weights import combine
from swiftplug.errors import UserError
from swiftplug.preview.html import to_html
from swiftplug.preview.rows import PreviewRow, build_preview_rows
from swiftplug.preview.text import to_text
from swiftplug.training.setup import OpenedRun, open_run


def preview(config: TrainConfig, *, rows: int, format: Literal["text", "html", "json"], color: bool) -> str:
    """Show the first rows of a run's dataset.

    Args:
        config: The config of the run; its model's weights are not loaded.
        rows: How many rows of the dataset to show.
        format: `text`, `html` (a page of its own), or `json`: a list with, for each row, `input_ids`, `tokens`,
            `weights`, `segments`, and what else `PreviewRow` has.
        color: Whether to colour a text.

    Returns:
        The preview.

    Raises:
        UserError: Something is wrong with the config or the data.
    """
    opened = open_run(config)
    shown = list(_rows(config, opened, rows))
    if format == "json":
        return "[" + ",\n".join(json.dumps(_as_json(row), ensure_ascii=False) for row in shown) + "]"
    return to_html(shown, opened.notes) if format == "html" else to_text(shown, opened.notes, color)


def _rows(config: TrainConfig, opened: OpenedRun, limit: int) -> Iterator[PreviewRow]:
    """The rows, used or left out, as encoding would have them."""
    plugins, options = opened.plugins, config.data
    source = concatenate([open_source(choice, plugins.registry, "dataset") for choice in config.dataset])
    loss_scale = combine([plugin.bound for plugin in plugins.loss_scales])
    encoder = RowEncoder(opened.source.tokenizer, plugins.tools.bound, loss_scale, config.task, options)
    empty = True
    for row, origin in islice(source.read(), limit):
        empty = False
        try:
            conversation = to_conversation(row, origin, config.task, options.columns)
        except RowError as error:
            yield PreviewRow(str(origin), dropped=str(error))
            continue
        yield from build_preview_rows([conversation], encoder)
    if empty:
        raise UserError(f"{source.name}: the dataset is empty")


def _as_json(row: PreviewRow) -> dict[str, Any]:
    return {**asdict(row), "counts": {f"{weight:g}": count for weight, count in row.counts.items()}}
