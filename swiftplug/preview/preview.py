"""`swiftplug preview`: rows as the model will see them, each token with its weight."""

from itertools import islice
from typing import Literal

from swiftplug.config.schema import TrainConfig
from swiftplug.data.encode import RowEncoder
from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.formats import to_conversation
from swiftplug.data.read.sources import concatenate, open_source
from swiftplug.data.weights import combine
from swiftplug.errors import UserError
from swiftplug.preview.output import to_html, to_json, to_text
from swiftplug.preview.rows import PreviewRow, preview_rows
from swiftplug.training.setup import set_up


def preview(config: TrainConfig, *, rows: int, format: Literal["text", "html", "json"], color: bool) -> str:
    """Show the first rows of a run's dataset.

    Args:
        config: The config of the run; its model's weights are not loaded.
        rows: Number of rows to show.
        format: `text`, `html` (a self-contained page), or `json` (a list with the attributes of each `PreviewRow`).
        color: Whether to use colours in `text`.

    Returns:
        The preview.

    Raises:
        UserError: The config or the data is invalid.
    """
    opened = set_up(config)
    plugins, options = opened.plugins, config.data
    source = concatenate([open_source(choice, plugins.registry, "dataset") for choice in config.dataset])
    loss_scale = combine([plugin.bound for plugin in plugins.of("loss_scale")])
    encoder = RowEncoder(opened.load_tokenizer(), plugins.one("tools").bound, loss_scale, config.task, options)
    shown: list[PreviewRow] = []
    for row, origin in islice(source.read(), rows):
        try:
            shown += preview_rows(to_conversation(row, origin, config.task, options.columns), encoder)
        except RowError as error:
            shown.append(PreviewRow(str(origin), dropped=str(error)))
    if not shown:
        raise UserError(f"{source.name}: the dataset is empty")
    if format == "json":
        return to_json(shown)
    return to_html(shown, opened.notes) if format == "html" else to_text(shown, opened.notes, color)
