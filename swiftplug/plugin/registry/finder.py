"""Find the installed plugins by reading metadata. Nothing is imported until a plugin is loaded."""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import importlib_metadata

from swiftplug.errors import nearest
from swiftplug.formatting import printable
from swiftplug.plugin.registry.errors import MissingExtraError
from swiftplug.plugin.registry.kinds import KINDS
from swiftplug.plugin.registry.summaries import summary_of

BUILT_IN = "swiftplug"
FROM_FILE = "file"


@dataclass(frozen=True)
class FoundPlugin:
    """A plugin that can be named, usually not imported yet.

    Attributes:
        kind: A key of `KINDS`.
        name: The name that a config uses.
        distribution: The distribution that declares it, spelled as in its metadata; `file` for a `--plugin` file.
        version: The version of the distribution; empty for a file.
        value: Where the object is: `package.module:attribute` or `path/to/file.py:attribute`.
        extras: The extras of the distribution that the plugin needs.
        obj: The object itself, if it comes from a file: a file runs as soon as it is given.
        always_on: Whether it is used without being chosen, as the callbacks in a file's `extra_callbacks` are.
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    extras: tuple[str, ...] = ()
    obj: Any = field(default=None, compare=False, repr=False)
    always_on: bool = False

    @property
    def qualified_name(self) -> str:
        """The name with the distribution in front: no other distribution can have it."""
        return f"{self.distribution}:{self.name}"

    @property
    def source(self) -> str:
        """Where it comes from, for messages: `acme 1.0`, or the path of the file."""
        return self.value.rpartition(":")[0] if self.from_file else f"{self.distribution} {self.version}"

    @property
    def from_file(self) -> bool:
        """Whether it comes from a `--plugin` file."""
        # An installed distribution may be called "file" too, but it has a version.
        return self.distribution == FROM_FILE and not self.version

    @property
    def summary(self) -> str | None:
        """The first line of its documentation, read from the source text; None if there is none."""
        return summary_of(self.value)

    def __str__(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.name!r} of {self.source}"

    def load(self) -> Any:
        """Import the object, or return that of a file, which has already run.

        Raises:
            MissingExtraError: If its extra is not installed.
        """
        if self.from_file:
            return self.obj
        self.check_extras()
        module, _, attribute = self.value.partition(":")
        return reduce(getattr, attribute.split(".") if attribute else [], importlib.import_module(module))

    def check_extras(self) -> None:
        """Raise a MissingExtraError if an extra that the plugin needs is not installed."""
        if missing := missing_requirements(self.distribution, self.extras):
            extras = f"{self.distribution}[{','.join(self.extras)}]"
            raise MissingExtraError(f"needs {', '.join(missing)}: pip install '{extras}'")

    def module_file(self) -> str | None:
        """The file that `value` names, once the plugin is loaded; None if the module has none."""
        return self.source if self.from_file else getattr(sys.modules[self.value.partition(":")[0]], "__file__", None)


def find_installed(problems: list[str] | None = None) -> list[FoundPlugin]:
    """All plugins that installed distributions declare as entry points, sorted by name and distribution.

    If a distribution is on `sys.path` twice, the first one counts, as it does for `import`.

    Args:
        problems: Gets a sentence for each distribution whose metadata is broken, and for each entry point in a group
            that is called like ours and is none. They disturb nobody else.
    """
    problems = [] if problems is None else problems
    names = set()
    for distribution in importlib_metadata.distributions():
        # Searching the text is much faster than parsing it, and most distributions declare no plugins.
        declares = "[swiftplug" in _read(distribution, "entry_points.txt")
        # An interrupted uninstall leaves a folder without metadata.
        if declares and (name := _header(distribution, "Name")):
            names.add(normalize_distribution(name))
    kinds = {kind.group: kind.name for kind in KINDS.values()}
    found = []
    for distribution in map(importlib_metadata.distribution, sorted(names)):
        name, version = (_header(distribution, key) for key in ("Name", "Version"))
        try:
            entry_points = distribution.entry_points
        except Exception as error:  # whatever a parser raises for text that another tool wrote
            problems.append(f"the metadata of {name} is broken: {type(error).__name__}: {error}")
            continue
        if not version:
            problems.append(f"the metadata of {name} is broken: it has no version")
            continue
        for entry_point in entry_points:
            if entry_point.group.startswith("swiftplug") and entry_point.group not in kinds:
                problems.append(
                    f"{name} {version} has {entry_point.name!r} in the entry-point group {entry_point.group!r}, which "
                    f"does not exist{nearest(entry_point.group, kinds)}"
                )
            if entry_point.group in kinds:
                value, _, extras = printable(entry_point.value).partition("[")
                value, needed = re.sub(r"\s", "", value), tuple(re.findall(r"[\w.-]+", extras))
                plugin = printable(entry_point.name)
                found.append(FoundPlugin(kinds[entry_point.group], plugin, name, version, value, needed))
    return sorted(found, key=lambda plugin: (plugin.name, normalize_distribution(plugin.distribution), plugin.value))


def _read(distribution: Any, file: str) -> str:
    """The text of a metadata file; empty if there is none, or none that is text."""
    try:
        return distribution.read_text(file) or ""
    except UnicodeDecodeError:
        return ""


def _header(distribution: Any, key: str) -> str:
    """A header of the metadata; empty if there is none. To ask `distribution` would import a parser of email."""
    metadata = _read(distribution, "METADATA") or _read(distribution, "PKG-INFO")
    found = re.search(rf"^{key}:[ \t]*(\S.*?)\s*$", metadata, re.MULTILINE | re.IGNORECASE)
    return printable(found[1]) if found else ""


def missing_requirements(distribution: str, extras: Sequence[str]) -> list[str]:
    """The distributions that extras of a distribution require and that are not installed."""
    if not extras:
        return []
    from packaging.requirements import Requirement

    missing = []
    for requirement in map(Requirement, importlib_metadata.distribution(distribution).requires or []):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue  # required without any extra, so it is installed
        needed = any(marker.evaluate({"extra": extra}) for extra in extras)
        if needed and not any(importlib_metadata.distributions(name=requirement.name)):
            missing.append(requirement.name)
    return missing


def install_hint(name: str) -> str:
    """The end of an error message: how to install the plugin `name` if the distribution `swiftplug-NAME` has it."""
    for line in importlib_metadata.requires(BUILT_IN) or []:
        extra = re.match(
            rf"{BUILT_IN}-{re.escape(normalize_distribution(name))}(?!\w)[^;]*;.*extra == ['\"]([\w-]+)", line
        )
        if extra:
            return f"; install it with: pip install '{BUILT_IN}[{extra[1]}]'"
    return ""


def allow_lists(allow: Sequence[str] | None) -> dict[str, set[str]]:
    """The lists of distributions whose plugins may be loaded: normalized names, by where the list is given.

    A distribution must be on all of them; an empty list leaves the built-ins only.

    Args:
        allow: `plugins.allow` of the config, None if it is not given. The other list is the environment variable
            `SWIFTPLUG_PLUGINS`, names separated by commas.
    """
    lists = {} if allow is None else {"plugins.allow": allow}
    if "SWIFTPLUG_PLUGINS" in os.environ:
        lists["SWIFTPLUG_PLUGINS"] = os.environ["SWIFTPLUG_PLUGINS"].split(",")
    return {origin: {normalize_distribution(name.strip()) for name in names} for origin, names in lists.items()}


def normalize_distribution(distribution: str) -> str:
    """The normalized spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
