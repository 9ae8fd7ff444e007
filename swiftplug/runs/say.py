"""How a run speaks to the person at the terminal."""

from rich.console import Console


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is: not wrapped, and nothing in it taken for markup."""
    console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `47s`, `3m05s`, `2h07m`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
