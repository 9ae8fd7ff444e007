"""`swiftplug uninstall`."""

import os
import re
import sys
from typing import Annotated

import typer

from swiftplug.cli.install import run_pip
from swiftplug.errors import UserError


def uninstall(
    packages: Annotated[
        list[str], typer.Argument(metavar="PACKAGE", help="Names of packages, and options of pip: -y does not ask.")
    ],
) -> None:
    """Uninstall packages of plugins with pip, from swiftplug's own environment.

    Example: swiftplug uninstall swiftplug-plugins-example
    """
    run_pip("uninstall", packages, lambda: _answers(packages))


def _answers(packages: list[str]) -> str | None:
    """What pip is to read; None if it does not ask, or asks at a terminal."""
    never_asks = "PIP_YES" in os.environ or any(re.fullmatch("--yes|-[a-zA-Z]*y[a-zA-Z]*", each) for each in packages)
    if never_asks or (sys.stdin and sys.stdin.isatty()):
        return None
    names = [each for each in packages if not each.startswith("-")]
    answers = "".join(sys.stdin.readline() for _ in names) if sys.stdin else ""
    if not answers:
        raise UserError("uninstall asks before it removes anything, and there is no input; add -y")
    return answers


vars(uninstall)["passes_on_options"] = True
