"""How pages and the terminal colour tokens by their weight in the loss."""

from collections.abc import Sequence

from swiftplug.runs.preview_rows import PreviewRow


def weights_of(rows: Sequence[PreviewRow]) -> list[float]:
    """All weights that tokens of the rows have, and always 0 and 1, in ascending order."""
    return sorted({0.0, 1.0, *(weight for row in rows for each in row.conversations for weight in each.weights)})


def background(weight: float) -> str:
    """The colour of a weight: none for 0, green up to 1, orange to red above 1."""
    if weight == 0:
        return ""
    if weight <= 1:
        pale, strong, share = "#e6f6e8", "#7fcf8a", weight
    else:
        pale, strong, share = "#ffdf9e", "#f0695a", min((weight - 1) / 3, 1)
    channels = [(int(pale[at : at + 2], 16), int(strong[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(low * (1 - share) + high * share):02x}" for low, high in channels)


def weight_classes(rows: Sequence[PreviewRow]) -> tuple[dict[float, str], str]:
    """The CSS class of each weight, and the CSS of these classes."""
    classes = {weight: f"w{number}" for number, weight in enumerate(weights_of(rows))}
    return classes, "\n".join(
        f".{name} {{ {f'color: #000000; background: {background(weight)};' if weight else 'color: var(--muted);'} }}"
        for weight, name in classes.items()
    )
