"""`swiftplug preview`: shows rows as the model will see them, as text, as an HTML page or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from itertools import groupby, islice
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from swiftplug.config.schema import TrainConfig
from swiftplug.data.encode import RowEncoder
from swiftplug.data.read.conversation import RowError
from swiftplug.data.read.report import UnreadKeys
from swiftplug.data.read.sources import check_columns, concatenate, open_source
from swiftplug.data.weights import combine
from swiftplug.errors import UserError
from swiftplug.formatting import format_count
from swiftplug.plugin import Rows
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.errors import naming_plugins
from swiftplug.runs.page.page import render_page
from swiftplug.runs.page.token_weights import background, weight_classes, weights_of
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.runs.preview_rows import PreviewRow, preview_rows

_PLAIN_LEGEND = "⟦text⟧ trains with weight 1, ⟦0.5× text⟧ with another; all else does not train"


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
    plugins, options = resolve_plugins(config, ("task", "model", "tools", "loss_scale")), config.data
    opened = Arguments(config, plugins, tokenizer_only=True)
    sources = [open_source(choice, plugins.registry, "dataset", options.streaming) for choice in config.dataset]
    check_columns(options.columns, sources)
    source = concatenate(sources)
    with naming_plugins(plugins.all()):
        tokenizer = opened.load_tokenizer()
    loss_scale = combine(plugins.of("loss_scale"))
    encoder = RowEncoder(tokenizer, plugins.one("tools").bound, loss_scale, opened.task, options)
    shown: list[PreviewRow] = []
    unread = UnreadKeys()
    with naming_plugins(plugins.all()):
        if opened.task.rows is not Rows.TEXT:
            opened.load_chat()  # notes a chat template without an end-of-turn token
        for row in islice(source.read(), rows):
            try:
                shown += preview_rows(encoder.read(row, unread), encoder)
            except RowError as error:
                shown.append(PreviewRow(str(row.origin), dropped=str(error)))
    if not shown:
        raise UserError(f"{source.name}: the dataset is empty")
    if format == "json":
        return to_json(shown)
    notes = [*plugins.registry.notes, *opened.notes, *unread.lines()]
    return to_html(shown, notes) if format == "html" else to_text(shown, notes, color)


def to_text(rows: Sequence[PreviewRow], notes: Sequence[str], color: bool) -> str:
    """Notes, a legend, and the rows with their counts; trained tokens are coloured, or bracketed without colour."""
    file = StringIO()
    console = Console(
        file=file, force_terminal=color, color_system="truecolor" if color else None, width=10**6, highlight=False
    )
    for note in notes:
        console.print(Text(f"note: {note}"))
    console.print(_legend(rows) if color else Text(_PLAIN_LEGEND))
    for number, row in enumerate(rows, 1):
        console.print()
        is_pair = row.rejected is not None
        title = [f"row {number}", row.origin, *(() if is_pair else (row.answer, row.summary))]
        console.print(Text("── " + " · ".join(filter(None, title)), style="bold"))
        if row.dropped:
            console.print(Text(f"   left out: {row.dropped}"))
        for each in row.conversations:
            if is_pair:
                console.print(Text(f"   {each.answer} · {each.summary}", style="bold"))
            if each.note:
                console.print(Text(f"   {each.note}"))
            if each.tokens:
                console.print(_body(each, color))
    used = [row for row in rows if row.dropped is None]
    read = [each for row in used for each in row.conversations]
    tokens, trained = sum(len(each.tokens) for each in read), sum(each.trained for each in read)
    console.print()
    of_tokens = f"{format_count(tokens, 'token')}, {trained:,} trained"
    console.print(Text(f"{len(used):,} of {format_count(len(rows), 'row')} used: {of_tokens}"))
    return file.getvalue().rstrip("\n")


def to_html(rows: Sequence[PreviewRow], notes: Sequence[str]) -> str:
    """A self-contained page in which everything that comes from the data is escaped.

    The tooltip of a token shows its id, weight and segment.
    """
    classes, style = weight_classes(rows)
    pieces = render_page(
        "preview/preview.html.jinja",
        styles=["runs/page/token_weights.css", "preview/preview.css"],
        more_style=style,
        title="Rows as the model will see them",
        rows=rows,
        notes=notes,
        classes=classes,
    )
    return "".join(pieces).rstrip()


def to_json(rows: Sequence[PreviewRow]) -> str:
    """A list with one object per row: the attributes of `PreviewRow`, and its counts."""
    return "[" + ",\n".join(json.dumps(_to_object(row), ensure_ascii=False) for row in rows) + "]"


def _to_object(row: PreviewRow) -> dict[str, Any]:
    rejected = _to_object(row.rejected) if row.rejected else None
    counts = {f"{weight:g}": count for weight, count in row.counts.items()}
    return asdict(row) | {"rejected": rejected, "counts": counts}


def _style(weight: float) -> str:
    color = background(weight)
    return f"#000000 on {color}" if color else "#8a8a8a"


def _legend(rows: Sequence[PreviewRow]) -> Text:
    legend = Text("weights: ")
    for weight in weights_of(rows):
        legend.append(f" {weight:g} ", style=_style(weight))
        legend.append(" ")
    return legend


def _body(row: PreviewRow, color: bool) -> Text:
    body = Text()
    pairs = zip(row.weights, row.tokens, strict=True)
    if color:
        for place, (weight, token) in enumerate(pairs):
            # Every other token is underlined, to separate neighbours of the same weight.
            body.append(_visible(token), style=_style(weight) + (" underline" if place % 2 and weight else ""))
        return body
    for weight, group in groupby(pairs, key=lambda pair: pair[0]):
        text = _visible("".join(token for _, token in group))
        factor = "" if weight == 1 else f"{weight:g}× "
        body.append(f"⟦{factor}{text}⟧" if weight else text)
    return body


def _visible(text: str) -> str:
    """Escape control characters, which could change the terminal."""
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() or ord(letter) > 0x9F else f"\\x{ord(letter):02x}"
        for letter in text
    )
