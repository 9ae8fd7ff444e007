"""`swiftplug list-plugins`: the plugins that a config can name, and whether they work."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from swiftplug.errors import UserError, nearest
from swiftplug.plugin.registry import KINDS, Check, FoundPlugin, Registry
from swiftplug.processes import silence_libraries

if TYPE_CHECKING:
    from rich.text import Text

_WIDE = 100  # from this terminal width on, the distribution has its own column
_SECONDS = 10.0  # for one call of a plugin
_STYLES = {"fits": "green", "broken": "bold red", "needs an extra": "yellow"}

Listed = tuple[FoundPlugin, Check | None]


def list_plugins(
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="List only plugins of this kind, such as loss.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="WORD",
            help="List only plugins with this word in name, kind, distribution or summary; of several words, all. "
            "Exit code 1 if there is none.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print a list of JSON objects.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", metavar="", help="Import each plugin, and try it on tiny input where that is safe."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", metavar="", help="Also show where each plugin is defined.")
    ] = False,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin", metavar="FILE.py", help="Also list the plugins of this Python file. Repeat for several."
        ),
    ] = None,
) -> None:
    """List the installed plugins, without importing them."""
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind: there is no kind {kind!r}{nearest(kind, KINDS)}")
    with redirect_stdout(sys.stderr):  # what plugins print on import is not part of the list
        if check:
            from swiftplug.plugin.registry.trials import import_libraries

            silence_libraries()
            import_libraries()
        registry = Registry.discover(files=files or [])
        words = " ".join(search or []).lower().split()
        matching = [found for found in registry.found(kind) if all(word in _searched(found) for word in words)]
        listed = [(found, _check(registry, found) if check else None) for found in matching]
    if as_json:
        print(json.dumps([_as_object(plugin) for plugin in listed], indent=2, ensure_ascii=False))
    elif words and not listed:
        print(f"No {'plugin' if kind is None else kind.replace('_', ' ')} has {' and '.join(words)}.", file=sys.stderr)
    elif sys.stdout.isatty() or "COLUMNS" in os.environ:
        _print_tables(listed, verbose)
    else:
        _print_lines(listed, verbose)
    refused = {found.distribution for found in registry.refused(kind)}
    if refused:
        print(f"Not listed, as SWIFTPLUG_PLUGINS does not allow them: {', '.join(sorted(refused))}", file=sys.stderr)
    for problem in registry.problems:
        print(problem, file=sys.stderr)
    is_broken = any(result and result.status == "broken" for _, result in listed) or (check and registry.problems)
    if is_broken or (words and not listed):
        raise typer.Exit(1)


def _searched(found: FoundPlugin) -> str:
    """The text in which `--search` looks."""
    kind = KINDS[found.kind]
    texts = found.kind, kind.option, found.kind.replace("_", " "), found.name, found.distribution, found.summary or ""
    return "\n".join(texts).lower()


def _check(registry: Registry, found: FoundPlugin) -> Check:
    """Whether a plugin fits its contract and, called on tiny input, does what the contract says."""
    from swiftplug.runs.time_limit import call_within

    result = registry.check(found)
    if result.status != "fits":
        return result
    try:
        return call_within(_SECONDS, lambda: registry.try_out(found), f"not tried to the end in {_SECONDS:g} s")
    except UserError as late:
        return Check("fits", str(late))


def _as_object(listed: Listed) -> dict[str, str | None]:
    found, result = listed
    names = ("kind", "name", "qualified_name", "distribution", "version", "value", "summary")
    return {name: getattr(found, name) for name in names} | (result._asdict() if result else {})


def _distribution(found: FoundPlugin) -> str:
    return f"{found.distribution} {found.version}".rstrip()


def _print_lines(listed: Sequence[Listed], verbose: bool) -> None:
    """One line per plugin, however long, for `grep` and the like."""
    with_check = bool(listed and listed[0][1])
    rows = [["KIND", "NAME", "DISTRIBUTION", *(["OBJECT"] if verbose else []), "CHECK" if with_check else "SUMMARY"]]
    for found, result in listed:
        last = f"{result.status}  {result.cause}" if result else found.summary or ""
        rows.append([found.kind, found.name, _distribution(found), *([found.value] if verbose else []), last])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_tables(listed: Sequence[Listed], verbose: bool) -> None:
    """One table per kind, with the same columns: name, summary and, in its own column or after it, distribution."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    wide = console.width >= _WIDE
    name_width = min(max((len(found.name) for found, _ in listed), default=0), console.width // 4)
    for kind, plugins in groupby(listed, key=lambda plugin: plugin[0].kind):
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False, expand=True)
        table.add_column(width=name_width, overflow="fold")
        table.add_column(ratio=1, overflow="fold")
        if wide:
            table.add_column(width=max(len(_distribution(found)) for found, _ in listed), overflow="fold")
        for found, result in plugins:
            text = _description(found, result)
            if not wide:
                text.append(f" ({found.distribution})", "dim")
            if verbose:
                text.append(f"\n{found.value}", "dim")
            table.add_row(Text(found.name, "bold"), text, *([Text(_distribution(found), "dim")] if wide else []))
        console.print(Text.assemble((kind, "bold cyan"), f" ({KINDS[kind].option})"), table, "", sep="\n")


def _description(found: FoundPlugin, result: Check | None) -> "Text":
    """The summary of a plugin or, if it was checked, the result."""
    from rich.text import Text

    if result is None:
        return Text(found.summary or "")
    return Text.assemble((result.status, _STYLES[result.status]), f": {result.cause}" if result.cause else "")
