"""The colour of a weight: grey for 0, greens up to 1, orange to red above, blue below 0."""

from typing import NamedTuple


class Shade(NamedTuple):
    """Colours as `#rrggbb`.

    Attributes:
        background: Empty for none.
        foreground: Of the text.
    """

    background: str
    foreground: str


def shade(weight: float) -> Shade:
    """The colours of a weight: the further from 0, the stronger.

    Example:
        >>> shade(1.0)
        Shade(background='#7fcf8a', foreground='#000000')
    """
    if weight == 0:
        return Shade("", "#8a8a8a")
    if weight < 0:
        return Shade(_between("#dbe6fb", "#5f8dea", min(-weight, 1)), "#000000")
    if weight <= 1:
        return Shade(_between("#e6f6e8", "#7fcf8a", weight), "#000000")
    return Shade(_between("#ffdf9e", "#f0695a", min((weight - 1) / 3, 1)), "#000000")


def _between(pale: str, strong: str, share: float) -> str:
    """A colour on the way from one to another."""
    channels = (
        round(int(pale[place : place + 2], 16) * (1 - share) + int(strong[place : place + 2], 16) * share)
        for place in (1, 3, 5)
    )
    return "#" + "".join(f"{channel:02x}" for channel in channels)
