"""One registry for all plugins: installed or from a file, found by name, imported when used."""

import importlib
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from swiftplug.errors import UserError, nearest
from swiftplug.plugin.registry.binding import BoundMetric, BoundTuner, bind
from swiftplug.plugin.registry.causes import cause_of
from swiftplug.plugin.registry.contracts import ContractError, check_contract
from swiftplug.plugin.registry.discovery import (
    BUILT_IN,
    FoundPlugin,
    allow_lists,
    find_installed,
    missing_requirements,
    normalized,
)
from swiftplug.plugin.registry.files import FilePlugin, load_file
from swiftplug.plugin.registry.kinds import KINDS
from swiftplug.plugin.registry.options import check_options, option_source
from swiftplug.plugin.registry.sources import source_of

if TYPE_CHECKING:
    from swiftplug.plugin.registry.choice import PluginChoice

__all__ = ["BoundMetric", "BoundTuner", "Check", "LoadedPlugin", "Registry"]


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin in use.

    Attributes:
        found: What it was found as.
        options: Its options, checked and of the annotated types.
        bound: What the run calls, options applied (see `bind`).
        source_file: The file that defines it; None where there is none (a module written in C).
        source_hash: SHA-256 of that file and of the entry point's module, in hexadecimal.
    """

    found: FoundPlugin
    options: dict[str, Any]
    bound: Any
    source_file: str | None
    source_hash: str


class Check(NamedTuple):
    """What `list-plugins --check` says of a plugin.

    Attributes:
        status: Whether it can be used.
        cause: Why not, in one line; empty if it can.
    """

    status: Literal["fits", "broken", "needs an extra"]
    cause: str = ""


class _MissingExtraError(Exception):
    """The extra that a plugin declares is not installed; the message says what to do."""


class Registry:
    """All plugins that this process can see.

    Example:
        >>> registry = Registry.discover(files=["my_plugins.py"])
        >>> registry.resolve("loss", PluginChoice(name="focal", options={"gamma": 3}), "--loss").bound
    """

    def __init__(
        self,
        installed: Sequence[FoundPlugin],
        from_files: Sequence[FilePlugin],
        allow_lists: Mapping[str, Container[str]],
    ) -> None:
        kinds = list(KINDS)
        plugins = [*installed, *(it.found for it in from_files)]
        self._plugins = sorted(plugins, key=lambda it: kinds.index(it.kind))
        self._from_files = {it.found: it for it in from_files}
        self._allow_lists = allow_lists

    @classmethod
    def discover(cls, files: Sequence[str | Path] = (), allow: Sequence[str] | None = None) -> "Registry":
        """Find every installed plugin, and run the given files for theirs.

        Args:
            files: Files of plugins.
            allow: The distributions that may load plugins; None for all. `SWIFTPLUG_PLUGINS` limits as well; built-ins
                and files may always.

        Raises:
            UserError: If a file fails.
        """
        installed = find_installed()
        unique = {Path(file).resolve(): file for file in files}
        return cls(installed, [it for file in unique.values() for it in load_file(file)], allow_lists(allow))

    def found(self, kind: str | None = None) -> list[FoundPlugin]:
        """The plugins that may be used, of one kind or of all, in order of kind; those of files come last of theirs."""
        return [it for it in self._plugins if kind in (None, it.kind) and self._may_load(it)]

    def refused(self, kind: str | None = None) -> list[FoundPlugin]:
        """The plugins that the allow-list keeps out, of one kind or of all."""
        return [it for it in self._plugins if kind in (None, it.kind) and not self._may_load(it)]

    def has(self, kind: str, name: str) -> bool:
        """Whether a plugin, allowed or not, answers to a name or a qualified name. Imports nothing."""
        return bool(self._named(kind, name))

    def resolve(self, kind: str, choice: "PluginChoice", where: str) -> LoadedPlugin:
        """Import a plugin, check its contract and its options, and make it ready for use.

        Args:
            kind: A key of `KINDS`.
            choice: Its name or qualified name, and its options.
            where: What named it, for messages: `--loss`, `train.yaml: loss`.

        Raises:
            UserError: If it is unknown, ambiguous, not allowed, broken, or does not take the options.
        """
        found = self._choose(kind, choice.name, where)
        return self._use(found, choice.options, where)

    @property
    def active_callbacks(self) -> list[LoadedPlugin]:
        """The callbacks that act because a file that has them was given.

        Raises:
            UserError: If one does not fit its contract.
        """
        active = [it.found for it in self._from_files.values() if it.active]
        return [self._use(found, {}, "extra_callbacks") for found in active]

    def check(self, found: FoundPlugin) -> Check:
        """Import a plugin and check its contract."""
        try:
            check_contract(found.kind, self._load(found))
        except _MissingExtraError as error:
            return Check("needs an extra", str(error))
        except ContractError as error:
            return Check("broken", str(error))
        except (Exception, SystemExit) as error:
            return Check("broken", cause_of(error))
        return Check("fits")

    def _use(self, found: FoundPlugin, options: dict[str, Any], where: str) -> LoadedPlugin:
        of = f"{where}: {found}"
        try:
            plugin = self._load(found)
            check_contract(found.kind, plugin)
            checked = check_options(options, option_source(found.kind, plugin), of)
            bound = _made(found, plugin, checked, where)
        except UserError:
            raise
        except (_MissingExtraError, ContractError) as error:
            raise UserError(f"{of} {error}") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"{of} is broken: {cause_of(error)}") from error
        module = None if found.from_file else sys.modules[found.value.partition(":")[0]]
        named_in = getattr(module, "__file__", None) if module else found.source
        return LoadedPlugin(found, checked, bound, *source_of(plugin, named_in))

    def _load(self, found: FoundPlugin) -> Any:
        if found in self._from_files:
            return self._from_files[found].plugin
        missing = missing_requirements(found)
        if missing:
            extras = f"{found.distribution}[{','.join(found.extras)}]"
            raise _MissingExtraError(f"needs {', '.join(missing)}: pip install '{extras}'")
        module, _, attribute = found.value.partition(":")
        return reduce(getattr, attribute.split(".") if attribute else [], importlib.import_module(module))

    def _choose(self, kind: str, name: str, where: str) -> FoundPlugin:
        named = self._named(kind, name)
        allowed = [it for it in named if self._may_load(it)]
        if len(allowed) == 1:
            return allowed[0]
        label = kind.replace("_", " ")
        if not named:
            known = [it.qualified_name if ":" in name else it.name for it in self.found(kind)]
            raise UserError(f"{where}: there is no {label} {name!r}{nearest(name, known)}")
        if not allowed:
            raise UserError(f"{where}: {named[0]} is not allowed by {' and '.join(self._refusals(named[0]))}")
        names = " and ".join(f"{it.qualified_name} ({it.source})" for it in allowed)
        if len({it.qualified_name for it in allowed}) < len(allowed):
            raise UserError(f"{where}: {label} {name!r} is ambiguous: {names}; rename one")
        raise UserError(f"{where}: {label} {name!r} is ambiguous: {names}; give the qualified name")

    def _named(self, kind: str, name: str) -> list[FoundPlugin]:
        distribution, _, bare = name.partition(":")
        return [
            it
            for it in self._plugins
            if it.kind == kind
            and (it.name == name or (it.name == bare and normalized(it.distribution) == normalized(distribution)))
        ]

    def _may_load(self, found: FoundPlugin) -> bool:
        return not self._refusals(found)

    def _refusals(self, found: FoundPlugin) -> list[str]:
        """The names of the allow-lists that keep a plugin out."""
        distribution = normalized(found.distribution)
        if found.from_file or distribution == BUILT_IN:
            return []
        return [name for name, allowed in self._allow_lists.items() if distribution not in allowed]


def _made(found: FoundPlugin, plugin: Any, options: dict[str, Any], where: str) -> Any:
    """A plugin with its options; what it says against them itself is led by what named it."""
    try:
        if further := getattr(plugin, "check_options", None):
            further(**options)  # what a signature cannot say, such as the fields of a class that an option names
        return bind(found.kind, found.name, plugin, options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
