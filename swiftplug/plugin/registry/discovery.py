"""What is installed, read from metadata alone: nothing here imports a plugin."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import importlib_metadata

from swiftplug.plugin.registry.kinds import KINDS
from swiftplug.plugin.registry.summaries import summary_of

BUILT_IN = "swiftplug"
FROM_FILE = "file"

_GROUPS = {kind.group: kind.name for kind in KINDS.values()}


@dataclass(frozen=True)
class FoundPlugin:
    """A plugin as its metadata names it, not imported yet.

    Attributes:
        kind: A key of `KINDS`.
        name: What a config calls it.
        distribution: Who brought it, as that distribution writes its own name; `file` for a `--plugin` file.
        version: The version of the distribution; empty for a file.
        value: Where the object is, `package.module:attribute` or `path/to/file.py:attribute`.
        extras: The extras of the distribution that the plugin needs.
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    extras: tuple[str, ...] = ()

    @property
    def qualified_name(self) -> str:
        """The name that no other distribution's plugin can have."""
        return f"{self.distribution}:{self.name}"

    @property
    def source(self) -> str:
        """Who brought it, for people: `acme 1.0`, or the path of the file."""
        return self.value.rpartition(":")[0] if self.from_file else f"{self.distribution} {self.version}"

    @property
    def from_file(self) -> bool:
        """Whether a `--plugin` file brought it."""
        return self.distribution == FROM_FILE and not self.version

    @property
    def summary(self) -> str | None:
        """The first line of its documentation, read from its source text; None where there is none to read."""
        return summary_of(self.value)

    def __str__(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.name!r} of {self.source}"


def normalized(distribution: str) -> str:
    """A distribution's name in the one spelling that all its spellings share (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def find_installed() -> list[FoundPlugin]:
    """Every plugin that an installed distribution declares as an entry point.

    Most distributions declare none, and are told by a search in the text of their entry points. Where a distribution
    stands on `sys.path` twice, the first counts, as it does for `import`.

    Returns:
        The plugins, in order of kind, name and distribution.
    """
    names = set()
    for distribution in importlib_metadata.distributions():
        declares = "[swiftplug." in (distribution.read_text("entry_points.txt") or "")
        # An uninstall that was cut short leaves a folder without a name in it.
        if declares and (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")):
            names.add(normalized(distribution.name))
    found = (plugin for name in names for plugin in _declared_by(name))
    kinds = list(KINDS)
    return sorted(found, key=lambda it: (kinds.index(it.kind), it.name, normalized(it.distribution), it.value))


def _declared_by(normalized_name: str) -> list[FoundPlugin]:
    distribution = importlib_metadata.distribution(normalized_name)
    points = [point for point in distribution.entry_points if point.group in _GROUPS]
    if not points:
        return []
    name, version = distribution.name, distribution.version
    found = []
    for point in points:
        value, _, extras = point.value.partition("[")
        needed = tuple(re.findall(r"[\w.-]+", extras))
        found.append(FoundPlugin(_GROUPS[point.group], point.name, name, version, re.sub(r"\s", "", value), needed))
    return found


def missing_requirements(found: FoundPlugin) -> list[str]:
    """What the extras of a plugin require and is not installed.

    Returns:
        Names of distributions, as a rule none.
    """
    if not found.extras:
        return []
    from packaging.requirements import Requirement

    missing = []
    for line in importlib_metadata.distribution(found.distribution).requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = any(requirement.marker.evaluate({"extra": extra}) for extra in found.extras)
        if wanted and not _is_installed(requirement.name):
            missing.append(requirement.name)
    return missing


def _is_installed(distribution: str) -> bool:
    try:
        importlib_metadata.distribution(distribution)
    except importlib_metadata.PackageNotFoundError:
        return False
    return True


def allow_lists(allow: Sequence[str] | None) -> dict[str, set[str]]:
    """What limits the distributions that may load plugins: by name of the limit, their normalized names.

    A distribution must be in all of the lists. An empty one leaves the built-ins only.

    Args:
        allow: `plugins.allow` of the config, None where it is not given. `SWIFTPLUG_PLUGINS`, names joined by commas,
            is the other list.
    """
    lists = {} if allow is None else {"plugins.allow": allow}
    if "SWIFTPLUG_PLUGINS" in os.environ:
        lists["SWIFTPLUG_PLUGINS"] = os.environ["SWIFTPLUG_PLUGINS"].split(",")
    return {limit: {normalized(name.strip()) for name in names} for limit, names in lists.items()}
