"""Writes new plugins: a distribution with its tests, or one file."""

import ast
import keyword
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import importlib_metadata
from jinja2 import Environment, StrictUndefined
from packaging.utils import InvalidName, canonicalize_name

from swiftplug import __version__
from swiftplug.errors import UserError
from swiftplug.plugin.registry import KINDS
from swiftplug.plugin.registry.finder import BUILT_IN, find_installed

_HERE = Path(__file__).parent
_PACKAGE = "swiftplug.scaffold.package"
_LINE_LENGTH = 120


class _Example(NamedTuple):
    """The example of a kind: the module of `package` that has the name of the kind.

    Attributes:
        obj: What the entry point names.
        use: Commands that use it, and download nothing; `{}` is its option and its name.
    """

    obj: str
    use: str = "swiftplug train {}"


_ON_ANSWERS = "swiftplug train && swiftplug sample {}"  # samples from the model that was trained
_EXAMPLES = {
    "task": _Example(
        "LengthPenalizedDPO",
        "swiftplug train && swiftplug sample --output-dir runs/pairs && "
        "swiftplug train --model runs/quickstart --dataset runs/pairs/samples.jsonl {}",
    ),
    "callback": _Example("StopAtLoss"),
    "loss": _Example("GeneralizedCrossEntropy"),
    "loss_scale": _Example("LastLine"),
    "metric": _Example("WordF1"),
    "optimizer": _Example("layerwise_adamw"),
    "tools": _Example("TaggedJSON"),
    "tuner": _Example("LastLayers"),
    "prm": _Example("ShortSteps", _ON_ANSWERS),
    "orm": _Example("SameLastLine", _ON_ANSWERS),
    "model": _Example("small_model", "swiftplug train --dataset arithmetic#200 {}"),
    "dataset": _Example("count_letters", "swiftplug train --model tiny {}"),
    "engine": _Example("RandomChoice", "swiftplug sample --dataset arithmetic#20 --orm math {}"),
    "environment": _Example(
        "SecondAttempt",
        "swiftplug train && swiftplug train --task grpo --model runs/quickstart --dataset arithmetic {}",
    ),
}


class NewPlugin(NamedTuple):
    """A plugin that was written, with what the templates of a distribution say of it."""

    kind: str
    group: str
    name: str
    obj: str
    summary: str
    use: str

    def __str__(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.name!r}"


def new_distribution(name: str, kinds: Sequence[str], folder: Path) -> list[NewPlugin]:
    """Write a distribution with a plugin of each kind: a package, its tests, metadata, and a workflow that runs them.

    Args:
        name: The name of the distribution.
        kinds: The kinds, as keys of `KINDS`.
        folder: The new folder. It may exist if it is empty.

    Returns:
        Its plugins.

    Raises:
        UserError: The name cannot be used, or the folder exists or cannot be written.
    """
    plugins = _plugins(name, kinds)
    package = canonicalize_name(name).replace("-", "_")
    if any(importlib_metadata.distributions(name=name)):
        installed = f"{name} {importlib_metadata.version(name)}"
        raise UserError(f"{installed} is installed already; choose another name, or uninstall it")
    importable = package.isidentifier() and not keyword.iskeyword(package)
    if not importable or package == "tests" or _origin(package):  # `tests` has its own
        raise UserError(
            f"{name}: its package would be called {package!r}, "
            f"which {'is taken' if importable else 'is no module name'}; choose another name, such as "
            f"{BUILT_IN}-{canonicalize_name(name)}"
        )
    files = {
        f"src/{package}/__init__.py": _read("package/__init__.py"),
        f"src/{package}/py.typed": "",
        **{f"src/{package}/{kind}.py": _join([f"package/{kind}.py"], package) for kind in kinds},
        **{f"tests/test_{kind}.py": _join([f"tests/test_{kind}.py"], package) for kind in kinds},
    }
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    for path in ("pyproject.toml", "README.md", ".gitignore", ".github/workflows/test.yml"):
        template = environment.from_string(_read(f"templates/{Path(path).name.lstrip('.')}.jinja"))
        files[path] = template.render(name=name, package=package, plugins=plugins, version=__version__)
    with _new(folder) as new:
        for path, text in files.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_text(text, encoding="utf-8")
    return plugins


def new_file(name: str, kinds: Sequence[str], file: Path) -> list[NewPlugin]:
    """Write a file with a plugin of each kind, for `--plugin`.

    Args:
        name: What its plugins are to be called.
        kinds: The kinds, as keys of `KINDS`.
        file: The new file.

    Returns:
        Its plugins.

    Raises:
        UserError: The name cannot be used, or the file exists or cannot be written.
    """
    if file.suffix != ".py":
        raise UserError(f"{file}: expected a file whose name ends in .py")
    if (origin := _origin(file.stem)) and Path(origin).resolve() != file.resolve():
        raise UserError(
            f"{file} would hide the installed module {file.stem!r} from Python code beside it; choose another name, "
            f"such as {BUILT_IN}_{file.stem}"
        )
    plugins = _plugins(name, kinds, f"--plugin {shlex.quote(str(file))} ")
    decorators = {
        plugin.obj: "register_loss_func" if plugin.kind == "loss" else f"register_{plugin.kind}" for plugin in plugins
    }
    text = _join(
        [f"package/{kind}.py" for kind in kinds],
        imports=f"from swiftplug.plugin import {', '.join(decorators.values())}",
    )
    for obj, decorator in decorators.items():
        text = re.sub(rf"^(class|def) {obj}\b", rf'@{decorator}("{plugins[0].name}")\n\g<0>', text, flags=re.MULTILINE)
    with _new(file) as new:
        new.write_text(text, encoding="utf-8")
    return plugins


def _plugins(name: str, kinds: Sequence[str], options: str = "") -> list[NewPlugin]:
    """The plugins of a distribution or file of this name."""
    try:
        plugin = canonicalize_name(name, validate=True).removeprefix(f"{BUILT_IN}-").replace("-", "_")
    except InvalidName:
        plugin = ""
    if not plugin.isidentifier():
        raise UserError(
            f"{name!r} is no name for plugins; expected letters, digits, '-', '_' and '.', with a letter first and a "
            "letter or digit last"
        )
    for found in find_installed():
        if found.name == plugin and found.kind in kinds:
            raise UserError(f"{name}: there is a {found} already; choose another name")
    plugins = []
    for kind in kinds:
        _, _, summary = (ast.get_docstring(ast.parse(_read(f"package/{kind}.py"))) or "").partition(": ")
        use = _EXAMPLES[kind].use.format(f"{options}{KINDS[kind].option} {plugin}")
        plugins.append(NewPlugin(kind, KINDS[kind].group, plugin, _EXAMPLES[kind].obj, summary.rstrip("."), use))
    return plugins


def _origin(module: str) -> str | None:
    """Where the module of this name comes from; None if none can be imported (nor has a folder without Python one)."""
    spec = find_spec(module) if module.isidentifier() else None
    return spec.origin if spec else None


def _read(path: str) -> str:
    return (_HERE / path).read_text(encoding="utf-8")


def _join(paths: Sequence[str], package: str = "", imports: str = "") -> str:
    """The source of modules as that of one, with their imports sorted.

    Args:
        paths: The modules.
        package: What takes the place of `swiftplug.scaffold.package`.
        imports: Another import.
    """
    sources = [_read(path).replace(_PACKAGE, package) for path in paths]
    imported = [*ast.parse(imports).body]
    docstrings, bodies = [], []
    for source in sources:
        tree = ast.parse(source)
        own = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        imported += own
        docstrings += [docstring] if (docstring := ast.get_docstring(tree)) else []
        bodies.append("\n".join(source.splitlines()[own[-1].end_lineno :]).strip())
    if len(docstrings) > 1:
        docstrings = ["\n".join(["Plugins for swiftplug.", "", *(f"- {docstring}" for docstring in docstrings), ""])]
    header = "".join(f'"""{docstring}"""\n\n' for docstring in docstrings)
    gap = "\n\n\n" if re.match("class|def|@|#", bodies[0]) else "\n\n"
    return header + _sort(imported, package) + gap + "\n\n\n".join(bodies) + "\n"


def _sort(imports: Iterable[ast.stmt], package: str) -> str:
    """Imports in the order of isort: the standard library, other packages, and the package itself."""
    names: dict[str, set[str]] = defaultdict(set)  # by module; none for `import module`
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            names[f"from {node.module}"] |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names.update({f"import {alias.name}": set() for alias in node.names})
    sections: dict[int, list[str]] = defaultdict(list)
    for module in sorted(names, key=lambda it: (it.startswith("from"), it)):
        top = module.split()[1].split(".")[0]
        members = sorted(names[module], key=lambda it: (not it.isupper(), not it[0].isupper(), it))
        line = f"{module} import {', '.join(members)}" if members else module
        if len(line) > _LINE_LENGTH:
            line = "\n".join([f"{module} import (", *(f"    {member}," for member in members), ")"])
        sections[0 if top in sys.stdlib_module_names else 2 if top == package else 1].append(line)
    return "\n\n".join("\n".join(sections[number]) for number in sorted(sections))


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A temporary path beside a new one, which takes its place if the block succeeds."""
    path = path.resolve()
    try:
        is_folder = path.is_dir() and not any(path.iterdir())
        if path.exists() and not is_folder:
            raise UserError(f"{path} exists; choose another place with --to")
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            new = Path(folder, path.name)
            yield new
            if is_folder:
                for child in new.iterdir():
                    child.rename(path / child.name)
            else:
                new.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
