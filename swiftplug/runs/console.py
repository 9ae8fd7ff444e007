"""How a run writes to the terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from swiftplug.plugin.registry import LoadedPlugin


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print a line unchanged: not wrapped, and without markup."""
    console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)


def print_plan(console: Console, facts: Iterable[tuple[str, str]], nothing_done: str) -> None:
    """Print what a dry run found, one labelled fact per row, and what was not done."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts:
        table.add_row(label, value)
    console.print(table, highlight=False, markup=False)
    print_line(console, f"dry run: {nothing_done}", "bold")


def plugin_fact(plugin: LoadedPlugin, **more: object) -> tuple[str, str]:
    """A plugin as a labelled fact: its kind, and its name, distribution and options."""
    found = plugin.found
    options = ", ".join(f"{name}={value!r}" for name, value in {**plugin.options, **more}.items())
    distribution = f"{found.distribution} {found.version}".rstrip()
    return found.kind.replace("_", " "), f"{found.name}  ({distribution})  {options}".rstrip()
