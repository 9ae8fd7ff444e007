"""`swiftplug list-plugins`: what can be named in a config, and whether it works."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from swiftplug.errors import UserError, nearest
from swiftplug.plugin.registry import KINDS, Check, FoundPlugin, Registry

if TYPE_CHECKING:
    from rich.text import Text

_WIDE = 120  # columns of a terminal from which everything about a plugin stands on one line
_STYLES = {"fits": "green", "broken": "bold red", "needs an extra": "yellow"}

Listed = tuple[FoundPlugin, Check | None]


def list_plugins(
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only one kind, such as loss.")] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print a list of JSON objects.")] = False,
    check: Annotated[
        bool, typer.Option("--check", metavar="", help="Import each and check that it fits its contract.")
    ] = False,
    files: Annotated[
        list[str] | None, typer.Option("--plugin", metavar="FILE.py", help="Also what a file has.")
    ] = None,
) -> None:
    """List the plugins that are installed, without importing them."""
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind: there is no kind {kind!r}{nearest(kind, KINDS)}")
    with redirect_stdout(sys.stderr):  # what a plugin prints while it is imported is no part of the list
        registry = Registry.discover(files=files or [])
        listed = [(it, registry.check(it) if check else None) for it in registry.found(kind)]
    if as_json:
        print(json.dumps([_as_object(it) for it in listed], indent=2, ensure_ascii=False))
    elif sys.stdout.isatty() or "COLUMNS" in os.environ:
        _print_tables(listed)
    else:
        _print_lines(listed)
    refused = {it.distribution for it in registry.refused(kind)}
    if refused:
        print(f"Not listed, for SWIFTPLUG_PLUGINS does not allow them: {', '.join(sorted(refused))}", file=sys.stderr)
    if any(result and result.status == "broken" for _, result in listed):
        raise typer.Exit(1)


def _as_object(listed: Listed) -> dict[str, str | None]:
    found, result = listed
    return {
        "kind": found.kind,
        "name": found.name,
        "qualified_name": found.qualified_name,
        "distribution": found.distribution,
        "version": found.version,
        "value": found.value,
        "summary": found.summary,
    } | (result._asdict() if result else {})


def _brought_by(found: FoundPlugin) -> str:
    return f"{found.distribution} {found.version}".rstrip()


def _print_lines(listed: Sequence[Listed]) -> None:
    """One line a plugin, however long, for `grep` and its like."""
    rows = [["KIND", "NAME", "DISTRIBUTION", "OBJECT", "SUMMARY" if not listed or listed[0][1] is None else "CHECK"]]
    for found, result in listed:
        last = f"{result.status}  {result.cause}" if result else found.summary or ""
        rows.append([found.kind, found.name, _brought_by(found), found.value, last])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_tables(listed: Sequence[Listed]) -> None:
    """A table a kind, all with the same columns: one row a plugin where it fits, else name and, beside it, the rest."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    wide = console.width >= _WIDE
    name_width = _width((it.name for it, _ in listed), console.width // 4)
    for kind, plugins in groupby(listed, key=lambda it: it[0].kind):
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(width=name_width, overflow="fold")
        if wide:
            table.add_column(width=_width((_brought_by(it) for it, _ in listed), console.width // 5), overflow="fold")
            table.add_column(width=_width((it.value for it, _ in listed), console.width * 2 // 5), overflow="fold")
        table.add_column(overflow="fold")
        for found, result in plugins:
            name, remark = Text(found.name, "bold"), _remark(found, result)
            brought_by, value = Text(_brought_by(found)), Text(found.value, "dim")
            if wide:
                table.add_row(name, brought_by, value, remark)
            else:
                fits = name_width + len(brought_by) + len(value) + 4 <= console.width
                place = [Text("  ").join([brought_by, value])] if fits else [brought_by, value]
                table.add_row(name, Text("\n").join([*([remark] if remark else []), *place]))
        console.print(Text.assemble((kind, "bold cyan"), f" ({KINDS[kind].option})"), table, "", sep="\n")


def _width(cells: Iterable[str], limit: int) -> int:
    return min(max(map(len, cells)), limit)


def _remark(found: FoundPlugin, result: Check | None) -> "Text":
    from rich.text import Text

    if result is None:
        return Text(found.summary or "")
    return Text.assemble((result.status, _STYLES[result.status]), f": {result.cause}" if result.cause else "")
