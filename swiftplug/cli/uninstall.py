"""`swiftplug uninstall`."""

from typing import Annotated

import typer

from swiftplug.cli.install import run_pip


def uninstall(
    packages: Annotated[
        list[str], typer.Argument(metavar="PACKAGE", help="Names of packages, and options of pip: -y does not ask.")
    ],
) -> None:
    """Uninstall packages of plugins with pip, from swiftplug's own environment.

    Example: swiftplug uninstall swiftplug-plugins-example
    """
    run_pip("uninstall", packages)


vars(uninstall)["passes_on_options"] = True
