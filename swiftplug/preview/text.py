"""A preview for a terminal: coloured by weight there, and with brackets in place of colours where it is piped."""

from collections.abc import Sequence
from io import StringIO
from itertools import groupby

from rich.console import Console
from rich.text import Text

from swiftplug.preview.colors import shade
from swiftplug.preview.rows import PreviewRow

_PLAIN_LEGEND = "⟦text⟧ trains with weight 1, ⟦0.5× text⟧ with another; all else does not train"


def to_text(rows: Sequence[PreviewRow], notes: Sequence[str], color: bool) -> str:
    """Write a preview as text.

    Args:
        rows: The rows.
        notes: What to say first.
        color: Whether to colour it, or to mark what trains by brackets.

    Returns:
        The text, with a legend and the counts of each row.
    """
    console = Console(
        file=StringIO(), force_terminal=color, color_system="truecolor" if color else None, width=10**6, highlight=False
    )
    for note in notes:
        console.print(Text(f"note: {note}"))
    console.print(_legend(rows) if color else Text(_PLAIN_LEGEND))
    for number, row in enumerate(rows, 1):
        console.print()
        console.print(Text(f"── row {number} · {row.origin} · {_summary(row)}", style="bold"))
        for line in (f"   left out: {row.dropped}" if row.dropped else "", f"   {row.note}" if row.note else ""):
            if line:
                console.print(Text(line))
        if row.tokens:
            console.print(_body(row, color))
    console.print()
    tokens, trained = sum(len(row.tokens) for row in _used(rows)), sum(row.trained for row in _used(rows))
    console.print(Text(f"{len(_used(rows))} of {len(rows)} rows used: {tokens} tokens, {trained} trained"))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().rstrip("\n")


def _used(rows: Sequence[PreviewRow]) -> list[PreviewRow]:
    return [row for row in rows if row.dropped is None]


def _summary(row: PreviewRow) -> str:
    counts = ", ".join(f"{count} of weight {weight:g}" for weight, count in row.counts.items())
    share = f" ({row.trained / len(row.tokens):.0%})" if row.tokens else ""
    return f"{len(row.tokens)} tokens, {row.trained} trained{share}" + (f": {counts}" if counts else "")


def _legend(rows: Sequence[PreviewRow]) -> Text:
    legend = Text("weights: ")
    for weight in sorted({0.0, 1.0, *(weight for row in rows for weight in row.weights)}):
        legend.append(f" {weight:g} ", style=_style(weight))
        legend.append(" ")
    return legend


def _body(row: PreviewRow, color: bool) -> Text:
    body = Text()
    pairs = zip(row.weights, row.tokens, strict=True)
    if color:
        for place, (weight, token) in enumerate(pairs):
            # Neighbours of one weight are told apart by an underline on every other token.
            body.append(_visible(token), style=_style(weight) + (" underline" if place % 2 and weight else ""))
        return body
    for weight, group in groupby(pairs, key=lambda pair: pair[0]):
        stretch = "".join(token for _, token in group)
        factor = "" if weight == 1 else f"{weight:g}× "
        body.append(f"⟦{factor}{_visible(stretch)}⟧" if weight else _visible(stretch))
    return body


def _visible(text: str) -> str:
    """Control characters, which could steer a terminal, as visible signs."""
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() or ord(letter) > 0x9F else f"\\x{ord(letter):02x}"
        for letter in text
    )


def _style(weight: float) -> str:
    background, foreground = shade(weight)
    return f"{foreground} on {background}" if background else foreground
