"""`swiftplug new-plugin`: a distribution of plugins to begin with, or one file."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from swiftplug.errors import UserError, nearest
from swiftplug.plugin.registry import KINDS


def new_plugin(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of the distribution, such as swiftplug-poly; its plugins are then called poly."
        ),
    ],
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help=f"Kind of plugin. Repeat for several: {', '.join(KINDS)}."),
    ] = None,
    as_file: Annotated[
        bool,
        typer.Option("--file", metavar="", help="Write one Python file for --plugin, instead of a distribution."),
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="PATH", help="The new folder, or with --file the new file. Default: ./NAME."),
    ] = None,
) -> None:
    """Write a distribution of plugins that works, to be changed: one small plugin of each kind, and its tests.

    It has tests that pass, types, a README, and a GitHub workflow. The license is yours to choose. With --file, all of
    it is one Python file, which --plugin uses at once.

    Example: swiftplug new-plugin swiftplug-poly --kind loss
    """
    for kind in kinds or []:
        if kind not in KINDS:
            raise UserError(f"--kind: there is no kind {kind!r}{nearest(kind, KINDS)}")
    if not kinds:
        raise UserError(f"which kind of plugin? Add --kind KIND; choose from: {', '.join(KINDS)}")
    from swiftplug.scaffold import new_distribution, new_file

    kinds = list(dict.fromkeys(kinds))
    to = to and to.expanduser()  # a shell leaves the ~ of --to=~/NAME to the program
    if as_file:
        name = name.removesuffix(".py")
        path = to or Path(f"{name.replace('-', '_')}.py")
        plugins = new_file(name, kinds, path)
        steps = [
            *(plugin.use for plugin in plugins),
            f"swiftplug list-plugins --check --plugin {shlex.quote(str(path))}",
            f"pytest --swiftplug={shlex.quote(str(path))}    # checks more; needs pytest",
        ]
    else:
        if name.endswith(".py"):
            raise UserError(f"{name}: add --file to write one file, or name a distribution, such as {name[:-3]}")
        path = to or Path(name)
        plugins = new_distribution(name, kinds, path)
        steps = [
            f"cd {shlex.quote(str(path))} && pip install -e '.[dev]'",
            "pytest",
            *(plugin.use for plugin in plugins),
            "python -m build",
        ]
    print(f"{path}: {', '.join(map(str, plugins))}. Next:\n")
    print(*(f"  {step}" for step in steps), sep="\n")
