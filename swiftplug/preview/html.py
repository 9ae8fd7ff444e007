"""A preview as a page: one file, nothing loaded from elsewhere, all that comes from data escaped."""

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment

from swiftplug.preview.colors import shade
from swiftplug.preview.rows import PreviewRow


def to_html(rows: Sequence[PreviewRow], notes: Sequence[str]) -> str:
    """Write a preview as a page.

    Args:
        rows: The rows.
        notes: What to say first.

    Returns:
        The page, with a legend, the counts of each row, and for each token its id, weight and segment on pointing.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("swiftplug.preview") / "preview.html.jinja").read_text(encoding="utf-8"))
    weights = sorted({0.0, 1.0, *(weight for row in rows for weight in row.weights)})
    return template.render(
        rows=[(row, _types(row)) for row in rows],
        notes=notes,
        weights=[(weight, f"w{place}", shade(weight)) for place, weight in enumerate(weights)],
        classes={weight: f"w{place}" for place, weight in enumerate(weights)},
    )


def _types(row: PreviewRow) -> list[str]:
    """The type of the segment that each token begins in."""
    types = ["other"] * len(row.tokens)
    for segment in row.segments:
        types[segment.first_token : segment.end_token] = [segment.type] * (segment.end_token - segment.first_token)
    return types
