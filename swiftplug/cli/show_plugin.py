"""`swiftplug show-plugin`: where a plugin comes from, what it does, its options, and how to use it."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import importlib_metadata
import typer

from swiftplug.errors import UserError, nearest
from swiftplug.formatting import format_command, printable
from swiftplug.plugin.registry import KINDS, FoundPlugin, Registry
from swiftplug.plugin.registry.definitions import Description, Expression, Option, describe
from swiftplug.plugin.task import TASK_KINDS
from swiftplug.processes import silence_libraries

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_IN_SAMPLE = ("engine", "orm", "prm")  # the kinds that `sample` uses, and `train` in some tasks
_IN_BOTH = ("tools", "model", "dataset")
_LINKS = ("homepage", "source", "repository", "documentation")  # labels in metadata, the best first
_LONGEST_DEFAULT = 50


def show_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the plugin, also with its distribution: DIST:NAME.")
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", metavar="KIND", help="Show only the plugin of this kind, if several kinds have the name."
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--plugin", metavar="FILE.py", help="Also look in this Python file. Repeat for several."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print a list of JSON objects.")] = False,
) -> None:
    """Show a plugin: what it does, its options, who brought it, and how a config or a command line names it.

    It is read from its source; only where that does not say what its options are is the plugin imported.

    Example: swiftplug show-plugin lora
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind: there is no kind {kind!r}{nearest(kind, KINDS)}")
    with _silence():
        registry = Registry.discover(files=files or [])
        plugins = [(found, describe(found)) for found in registry.lookup(name, kind)]
        needed = TASK_KINDS.intersection(found.kind for found, _ in plugins)
        tasks = {task.name: describe(task) for task in registry.found("task")} if needed else {}
    shown = [_Page(found, described, registry, tasks, files or []) for found, described in plugins]
    if as_json:
        print(json.dumps([page.as_object() for page in shown], indent=2, ensure_ascii=False))
    else:
        for index, page in enumerate(shown):
            page.print(is_first=index == 0)
    if any(described.broken for _, described in plugins):
        raise typer.Exit(1)


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what plugins and libraries print when they are imported."""
    silence_libraries()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


class _Page:
    """What is shown of one plugin."""

    def __init__(
        self,
        found: FoundPlugin,
        described: Description,
        registry: Registry,
        tasks: dict[str, Description],
        files: Sequence[str],
    ) -> None:
        self.found = found
        self.described = described
        self.kind = KINDS[found.kind]
        self.files = files if found.from_file else []
        acts = found.kind != "engine" or described.follows
        self.tasks = [name for name, task in tasks.items() if acts and found.kind in task.kinds]
        same = [each for each in registry.found(found.kind) if each.name == found.name]
        self.used_as = found.name if len(same) == 1 or found.from_file else found.qualified_name
        self.place = f"{self.kind.key}.{found.name}" if self.kind.many else self.kind.key  # as `--set` names it

    @property
    def home_page(self) -> str | None:
        """The address in the metadata of its distribution."""
        if self.found.from_file:
            return None
        metadata = importlib_metadata.metadata(self.found.distribution)
        links = [link.partition(",")[::2] for link in metadata.get_all("Project-URL") or []]
        by_label = {label.strip().lower().replace("-", "").replace(" ", ""): url.strip() for label, url in links}
        address = next((by_label[label] for label in _LINKS if label in by_label), metadata.get("Home-page"))
        return address and printable(address)

    @property
    def used_in(self) -> str:
        """The commands, and tasks, that take it."""
        if self.found.kind in _IN_SAMPLE:
            return f"sample, and train in task {', '.join(self.tasks)}" if self.tasks else "sample"
        command = "train and sample" if self.found.kind in _IN_BOTH else "train"
        return f"{command}, in task {', '.join(self.tasks)}" if self.found.kind in TASK_KINDS else command

    @property
    def config(self) -> str:
        """The YAML that names it, with the default of every option."""
        lines = [f"{'- ' if self.kind.many else ''}name: {_as_yaml(self.used_as)}"]
        for option in self.described.options:
            value = "VALUE  # required" if option.required else _as_yaml(option.default)
            if isinstance(option.default, Expression) or len(value) > _LONGEST_DEFAULT:
                value = "... by default as in the source"
            unknown = "# " if value.startswith("... by") else ""
            lines.append(f"{'  ' if self.kind.many else ''}{unknown}{option.name}: {value}")
        files = [f"plugins: {{files: [{', '.join(map(_as_yaml, self.files))}]}}"] if self.files else []
        if len(lines) == 1:
            named = f"[{_as_yaml(self.used_as)}]" if self.kind.many else _as_yaml(self.used_as)
            return "\n".join([*files, f"{self.kind.key}: {named}"])
        return "\n".join([*files, f"{self.kind.key}:", *(f"  {line}" for line in lines)])

    @property
    def command(self) -> str:
        """The command line that names it, with its required options or else the first."""
        plain = [it for it in self.described.options if not isinstance(it.default, Expression)]
        options = [it for it in plain if it.required] or [it for it in plain if it.default is not None][:1]
        settings = [f"{self.place}.{it.name}={'VALUE' if it.required else _as_yaml(it.default)}" for it in options]
        words = ["sample" if self.found.kind in _IN_SAMPLE else "train"]
        words += [word for file in self.files for word in ("--plugin", file)]
        return format_command(*words, self.kind.option, self.used_as, *(w for it in settings for w in ("--set", it)))

    def as_object(self) -> dict[str, Any]:
        """What `--json` prints."""
        names = ("kind", "name", "qualified_name", "distribution", "version", "value")
        return {
            **{name: getattr(self.found, name) for name in names},
            "home_page": self.home_page,
            "documentation": self.described.documentation,
            "options": [option._asdict() for option in self.described.options],
            "takes_other_options": self.described.any_other is not None,
            "tasks": self.tasks if self.found.kind in TASK_KINDS else None,
            "rows": self.described.rows or None,
            "kinds": sorted(self.described.kinds) if self.found.kind == "task" else None,
            "needs": self.described.needs or None,
            "broken": self.described.broken or None,
            "config": self.config,
            "command": self.command,
        }

    def print(self, *, is_first: bool) -> None:
        """Print it for people, in the width of the terminal."""
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False)
        described, found = self.described, self.found
        with console.capture() as page:
            if not is_first:
                console.rule(style="dim")
            kind = f"{found.kind.replace('_', ' ')} ({self.kind.option})"
            console.print(Text.assemble((found.name, "bold"), "  ", (kind, "cyan")))
            for line in (described.documentation or "No documentation.").splitlines():
                console.print(_columns([("-", line[2:])]) if line.startswith("- ") else Text(line))
            console.print("", _columns(self._facts(), "dim"), sep="\n")
            if described.options or described.any_other is not None:
                console.print("", Text.assemble(("Options", "bold"), f"  --set {self.place}.OPTION=VALUE"), sep="\n")
                console.print(self._options())
            for title, text in (("In a config", self.config), ("On the command line", self.command)):
                console.print("", Text(title, "bold"), sep="\n")
                console.print(Text(indent(text, "  ")), soft_wrap=True)  # to be copied as it is
        print(re.sub(r" +$", "", page.get(), flags=re.MULTILINE), end="")

    def _facts(self) -> list[tuple[str, "str | Text"]]:
        from rich.text import Text

        found, described = self.found, self.described
        facts = [("from", found.source), ("home page", self.home_page), ("defined in", found.value)]
        if described.rows:
            acting = sorted(TASK_KINDS & described.kinds)
            facts += [
                ("reads", f"rows of {described.rows}"),
                ("takes", ", ".join(acting or [f"no {kind}" for kind in sorted(TASK_KINDS)]).replace("_", " ")),
            ]
        facts += [
            ("used in", self.used_in),
            ("needs", described.needs.removeprefix("needs ")),
            ("broken", described.broken),
        ]
        styles = {"needs": "yellow", "broken": "bold red"}
        return [(name, Text(fact, styles.get(name, ""))) for name, fact in facts if fact]

    def _options(self) -> "Table":
        from rich.text import Text

        rows = [
            (option.name, Text.assemble(option.help, " " if option.help else "", (_form(option), "dim")))
            for option in self.described.options
        ]
        if self.described.any_other is not None:
            rows.append(("any other", Text(self.described.any_other)))
        return _columns(rows, "green")


def _columns(rows: Sequence[tuple[str, "str | Text"]], style: str = "") -> "Table":
    """Names, and what is said of each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style=style, no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(f"  {name}"), Text(text) if isinstance(text, str) else text)
    return table


def _form(option: Option) -> str:
    """The type and the default of an option, in brackets."""
    default = "required" if option.required else f"default {_as_yaml(option.default)}"
    if len(default) > _LONGEST_DEFAULT:
        default = f"{default[:_LONGEST_DEFAULT]}..."
    return f"({', '.join(filter(None, (option.type, default)))})"


def _as_yaml(value: Any) -> str:
    """A value as YAML, on one line: JSON is YAML, and a plain word needs no quotes."""
    if isinstance(value, Expression):
        return str(value)
    is_word = isinstance(value, str) and value.replace("-", "_").isidentifier()
    if is_word and value.lower() not in ("true", "false", "null", "yes", "no", "on", "off", "y", "n"):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
