"""How messages and pages write numbers, the text of others, and commands to copy."""

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath


def format_count(count: int, noun: str) -> str:
    """A number of things: `1 row`, `1,234 rows`, `2 batches`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith(('ch', 's', 'x')) else 's'}"


def shortest_ends(paths: Sequence[PurePath]) -> list[str]:
    """The shortest ends of paths that tell them apart, of a checkpoint with its run; of the same path all of it.

    Example:
        >>> shortest_ends([PurePath("a/first"), PurePath("b/first"), PurePath("b/first/checkpoint-5")])
        ['a/first', 'b/first', 'first/checkpoint-5']
    """
    labels = []
    for path in paths:
        shortest = 2 if path.name.startswith("checkpoint-") else 1
        ends = (path.parts[-length:] for length in range(shortest, len(path.parts)))
        only = (end for end in ends if sum(other.parts[-len(end) :] == end for other in paths) == 1)
        labels.append(PurePath(*next(only, path.parts)).as_posix())
    return labels


def format_percent(share: float) -> str:
    """A share as per cent: `43.1%`, `57%`, `0.34%`. Only none is `0%`, and only all is `100%`."""
    percent = 100 * share
    if 0 < percent < 0.01:
        return "<0.01%"
    if 99.99 < percent < 100:
        return ">99.99%"
    decimals = 2 if 0 < percent < 1 or 99.9 < percent < 100 else 1
    return f"{percent:.{decimals}f}".rstrip("0").rstrip(".") + "%" if percent else "0%"


def format_duration(seconds: float) -> str:
    """A duration: `47s`, `3m05s`, `2h07m`, `3d04h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_rate(count: float, seconds: float, noun: str) -> str:
    """How many things a second: `0.42 steps/s`, `12.3 candidates/s`, `1,234 tokens/s`."""
    rate = count / max(seconds, 1e-9)
    decimals = 0 if rate >= 100 else 1 if rate >= 10 else 2
    return f"{rate:,.{decimals}f} {format_count(2, noun).partition(' ')[2]}/s"


def format_number(value: float) -> str:
    """A number with at most four decimals, or three significant digits if it is below 0.01.

    Example:
        >>> format_number(0.5), format_number(1234.0), format_number(0.00012345)
        ('0.5', '1,234', '0.000123')
    """
    if value and abs(value) < 0.01:
        return f"{value:.3g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def printable(text: str) -> str:
    r"""The text of another author, in which no control character but tab and newline acts on the terminal.

    Example:
        >>> printable("a \x1b[31mred\x1b[0m word")
        'a \\x1b[31mred\\x1b[0m word'
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: ascii(found[0])[1:-1], text)


def format_command(*words: object) -> str:
    """A `swiftplug` command that can be copied to a shell whatever its words hold: spaces, quotes, `[`, `#`, `~`.

    Example:
        >>> format_command("train", "my run/config.yaml", "--resume")
        "swiftplug train 'my run/config.yaml' --resume"
    """
    return shlex.join(["swiftplug", *map(str, words)])
