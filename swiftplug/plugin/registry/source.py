"""The source code of a plugin: the file that defines it, and the modules of its own that it imports, however late."""

import ast
import inspect
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import importlib_metadata

from swiftplug.plugin.registry.files import definition_of
from swiftplug.plugin.registry.finder import BUILT_IN, FoundPlugin

_SITE_PACKAGES = {"site-packages", "dist-packages"}
# What every built-in imports from its own distribution; the version of swiftplug stands for it.
_API = (f"{BUILT_IN}.plugin", f"{BUILT_IN}.errors")


def source_of(plugin: Any, found: FoundPlugin) -> tuple[str | None, str]:
    """The file that defines a loaded plugin, and the hash of its source; see `LoadedPlugin`.

    Modules that it imports are found by reading import statements: nothing is imported.
    """
    import hashlib  # only here: it would slow down `list-plugins`

    try:
        defined_in = inspect.getsourcefile(definition_of(plugin))
    except TypeError:  # a class or function written in C
        defined_in = None
    module_file = found.module_file()
    files = {Path(file).resolve() for file in (defined_in, module_file) if file}
    if module_file and module_file.endswith(".py"):
        own = _OwnModules.of(found, Path(module_file).resolve())
        files |= own.imported_by(*files)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return defined_in or module_file, digest.hexdigest()


class _OwnModules(NamedTuple):
    """The modules that belong to a plugin.

    Attributes:
        root: The folder in which its top-level modules lie.
        installed: The files of its distribution; empty if it does not say (an editable install).
        package: The top-level package of the plugin.
    """

    root: Path
    installed: frozenset[Path]
    package: str

    @classmethod
    def of(cls, found: FoundPlugin, file: Path) -> "_OwnModules":
        """Those of a plugin whose entry point names the module in `file`."""
        if found.from_file:
            return cls(file.parent, frozenset(), file.stem)
        module = found.value.partition(":")[0]
        root = file.parents[module.count(".") + (file.name == "__init__.py")]
        recorded = importlib_metadata.distribution(found.distribution).files or ()
        installed = frozenset(Path(str(path.locate())).resolve() for path in recorded)
        return cls(root, installed if file in installed else frozenset(), module.partition(".")[0])

    def imported_by(self, *files: Path) -> set[Path]:
        """Files of own modules, and those of the modules that they import, and so on."""
        seen: set[Path] = set()
        todo = [file for file in files if self._owns(file)]
        while todo:
            file = todo.pop()
            if file not in seen:
                seen.add(file)
                package = file.relative_to(self.root).parent.parts
                todo += (path for name in _imports(file.read_bytes(), package) for path in self._files(name))
        return seen

    def _files(self, module: str) -> Iterator[Path]:
        """The files that importing a module runs, as far as they are own: its packages' and its own."""
        if f"{module}.".startswith(tuple(f"{name}." for name in _API)):
            return
        path = self.root
        for part in module.split("."):
            path /= part
            for file in (path / "__init__.py", path.with_suffix(".py")):
                if file.is_file() and self._owns(file.resolve()):
                    yield file.resolve()

    def _owns(self, file: Path) -> bool:
        if not file.is_relative_to(self.root):
            return False
        parts = file.relative_to(self.root).parts
        if self.installed:
            return file in self.installed
        if self.root.name in _SITE_PACKAGES:  # its distribution does not say which files it has
            return parts[0].removesuffix(".py") == self.package
        return _SITE_PACKAGES.isdisjoint(parts) and (parts[0] != BUILT_IN or self.package == BUILT_IN)


@lru_cache
def _imports(source: bytes, package: tuple[str, ...]) -> frozenset[str]:
    """The full names of the modules that a module imports, wherever in it; some may be attributes of modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # it is imported late, if ever
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Call) and _name_of(node.func).endswith("import_module"):
            given = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if given and isinstance(given[0], str):
                dots = len(given[0]) - len(given[0].lstrip("."))
                above = package[: len(package) - dots + 1] if dots else ()
                names.add(".".join([*above, given[0].lstrip(".")]))
    return frozenset(names)


def _name_of(function: ast.expr) -> str:
    """The last name of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
