"""Options that several commands take, declared once."""

from typing import Annotated

from typer import Option

DATA = "Model and data"
PLUGINS = "Plugins"
RUN = "Run"

Dataset = Annotated[
    list[str] | None,
    Option(
        metavar="NAME",
        help="File, hub id (org/name:subset/split) or plugin; #N behind it takes N rows. Repeat to join.",
        rich_help_panel=DATA,
    ),
]
Tools = Annotated[
    str | None, Option(metavar="NAME", help="How tools are written for the model.", rich_help_panel=PLUGINS)
]
PluginFiles = Annotated[
    list[str] | None, Option(metavar="FILE.py", help="A file that registers plugins. Repeat.", rich_help_panel=PLUGINS)
]
OutputDir = Annotated[
    str | None,
    Option(metavar="FOLDER", help="The run folder. Default: runs/ and the config's name.", rich_help_panel=RUN),
]
DryRun = Annotated[
    bool,
    Option("--dry-run", metavar="", help="Check everything up to the model, print the plan.", rich_help_panel=RUN),
]
Debug = Annotated[
    bool, Option("--debug", metavar="", help="Show tracebacks and what the libraries say.", rich_help_panel=RUN)
]
