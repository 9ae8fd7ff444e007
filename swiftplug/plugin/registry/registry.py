"""The registry: all plugins, installed or from files. It chooses one by name, loads it and applies its options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from swiftplug.errors import ContractError, UserError, causes, closest, nearest
from swiftplug.plugin.registry.contracts import check_contract
from swiftplug.plugin.registry.declared import declared_options
from swiftplug.plugin.registry.errors import MissingExtraError, OptionError, describe_error
from swiftplug.plugin.registry.files import load_file
from swiftplug.plugin.registry.finder import (
    BUILT_IN,
    FoundPlugin,
    allow_lists,
    find_installed,
    install_hint,
    normalize_distribution,
)
from swiftplug.plugin.registry.kinds import KINDS, OTHER_TASKS
from swiftplug.plugin.registry.source import source_of

if TYPE_CHECKING:
    from swiftplug.plugin.registry.options import PluginChoice


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that a run uses.

    Attributes:
        found: Its name and where it comes from.
        options: Its options, checked and converted to the annotated types.
        bound: What the run calls, options applied (see `bind`).
        source_file: The file that defines it; None if there is none (a module written in C).
        source_hash: SHA-256 of that file, of the entry point's module, and of the modules of its own distribution (or,
            for a plugin file, of its folder) that these import, however late, in hexadecimal. A resumed run compares it
            to detect a changed plugin.
    """

    found: FoundPlugin
    options: dict[str, Any]
    bound: Any
    source_file: str | None
    source_hash: str


class Check(NamedTuple):
    """The result of `list-plugins --check` for one plugin.

    Attributes:
        status: Whether it can be used.
        cause: Why it cannot, in one line; if it can, what could not be tried or what it raised, or empty.
    """

    status: Literal["fits", "broken", "needs an extra"]
    cause: str = ""


class Registry:
    """All plugins that this process can see.

    Attributes:
        notes: What a name was taken for where it could have meant something else, one sentence each.
        problems: What is wrong with the metadata of installed distributions, one sentence each.

    Example:
        >>> registry = Registry.discover(files=["my_plugins.py"])
        >>> registry.resolve("loss", PluginChoice(name="focal", options={"gamma": 3}), "--loss").bound
    """

    def __init__(
        self, plugins: Sequence[FoundPlugin], allow_lists: dict[str, set[str]], problems: Sequence[str] = ()
    ) -> None:
        kinds = list(KINDS)
        self._plugins = sorted(plugins, key=lambda plugin: kinds.index(plugin.kind))
        self._allow_lists = allow_lists
        self.notes: list[str] = []
        self.problems = problems

    @classmethod
    def discover(cls, files: Sequence[str | Path] = (), allow: Sequence[str] | None = None) -> "Registry":
        """Find every installed plugin, and run the given files for theirs.

        Args:
            files: Plugin files.
            allow: The distributions whose plugins may be loaded; None for all. `SWIFTPLUG_PLUGINS` limits them too.
                Built-ins and files are always allowed.

        Raises:
            UserError: If a file fails.
        """
        unique = {Path(file).expanduser().resolve(): file for file in files}
        problems: list[str] = []
        installed = find_installed(problems)
        from_files = [plugin for file in unique.values() for plugin in load_file(file)]
        return cls([*installed, *from_files], allow_lists(allow), problems)

    def found(self, kind: str | None = None) -> list[FoundPlugin]:
        """The plugins that may be used, of one kind or of all, in order of kind; those from files come last."""
        return [plugin for plugin in self._plugins if kind in (None, plugin.kind) and not self._forbidden_by(plugin)]

    def refused(self, kind: str | None = None) -> list[FoundPlugin]:
        """The plugins that an allow-list forbids, of one kind or of all."""
        return [plugin for plugin in self._plugins if kind in (None, plugin.kind) and self._forbidden_by(plugin)]

    def has(self, kind: str, name: str) -> bool:
        """Whether a name that may be a path too is that of a plugin, allowed or not. Imports nothing.

        A file or folder of this name comes before the plugin of a third party, which must not disturb a run that does
        not name it.
        """
        named = self._named(kind, name)
        third_party = [plugin for plugin in named if not plugin.from_file and plugin.distribution != BUILT_IN]
        if third_party == named and ":" not in name and Path(name).expanduser().exists():
            if named:
                self._note(f"{kind} {name!r} is the path, not {named[0].qualified_name} ({named[0].source})")
            return False
        return bool(named)

    def lookup(self, name: str, kind: str | None = None) -> list[FoundPlugin]:
        """Every plugin with a name or a qualified name, of one kind or of all. Imports nothing.

        Raises:
            UserError: There is none, or it may not be used.
        """
        named = [plugin for plugin in self._called(name) if kind in (None, plugin.kind)]
        allowed = [plugin for plugin in named if not self._forbidden_by(plugin)]
        if not named:
            what = f"{kind or 'plugin'} {name!r}".replace("_", " ")
            known = {plugin.qualified_name if ":" in name else plugin.name for plugin in self.found(kind)}
            others = [f"; there is {it.qualified_name} ({it.kind})" for it in self._called(name.rpartition(":")[2])]
            hint = install_hint(name) or "".join(others[:1]) or closest(name, known)
            raise UserError(f"there is no {what}{hint or '; swiftplug list-plugins lists all'}")
        if not allowed:
            raise UserError(f"{named[0]} is not allowed by {' and '.join(self._forbidden_by(named[0]))}")
        return allowed

    def check_name(self, kind: str, name: str, where: str) -> None:
        """Check that a name means exactly one plugin, which may be loaded. Imports nothing.

        Raises:
            UserError: It is unknown, ambiguous or not allowed.
        """
        self.choose(kind, name, where)

    def resolve(
        self, kind: str, choice: "PluginChoice", where: str, where_option: Callable[[str], str] | None = None
    ) -> LoadedPlugin:
        """Import a plugin, check its contract and its options, and make it ready for use.

        Args:
            kind: A key of `KINDS`.
            choice: Its name or qualified name, and its options.
            where: The option or config key that names it, for messages: `--loss`, `train.yaml: loss`.
            where_option: The place of one of its options; by default, that of its name.

        Raises:
            UserError: If it is unknown, ambiguous, not allowed, broken, or does not take the options.
        """
        return self._load(self.choose(kind, choice.name, where), choice.options, where, where_option)

    @property
    def always_on_callbacks(self) -> list[LoadedPlugin]:
        """The callbacks that are used without being chosen: those that a plugin file lists in `extra_callbacks`.

        Raises:
            UserError: If one does not fit its contract.
        """
        return [self._load(plugin, {}, "extra_callbacks") for plugin in self._plugins if plugin.always_on]

    def check(self, found: FoundPlugin) -> Check:
        """Import a plugin and check its contract."""
        try:
            check_contract(found.kind, found.load())
        except MissingExtraError as error:
            return Check("needs an extra", str(error))
        except ContractError as error:
            return Check("broken", str(error))
        except (Exception, SystemExit) as error:
            return Check("broken", describe_error(error))
        return Check("fits")

    def try_out(self, found: FoundPlugin) -> Check:
        """Call a plugin that fits its contract on tiny input, where that is safe."""
        from swiftplug.plugin.registry.trials import ON_ANY_INPUT, NoNetworkError, try_out  # a run does not need it

        try:
            try_out(found.kind, found.name, found.load())
        except ContractError as error:
            return Check("broken", str(error))
        except UserError as error:
            return Check("fits", f"not tried: {error}")
        except (Exception, SystemExit) as error:
            if any(isinstance(cause, NoNetworkError) for cause in causes(error)):
                return Check("fits", "not tried: it needs a network")
            status: Literal["fits", "broken"] = "broken" if found.kind in ON_ANY_INPUT else "fits"
            return Check(status, f"raised {describe_error(error)} when it was called on tiny input")
        return Check("fits")

    def _load(
        self,
        found: FoundPlugin,
        given: dict[str, Any],
        where: str,
        where_option: Callable[[str], str] | None = None,
    ) -> LoadedPlugin:
        from swiftplug.plugin.registry.options import bind, check_options  # they need pydantic

        try:
            plugin = found.load()
            check_contract(found.kind, plugin)
            options = check_options(given, declared_options(found.kind, plugin))
            if further := getattr(plugin, "check_options", None):
                # What annotations cannot express, such as the fields of a class that an option names.
                further(**options)
            bound = bind(found.kind, found.name, plugin, options)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (MissingExtraError, ContractError) as error:
            if isinstance(error, OptionError) and where_option:
                where = where_option(error.option)
            raise UserError(f"{where}: {found} {error}") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"{where}: {found} is broken: {describe_error(error)}") from error
        return LoadedPlugin(found, options, bound, *source_of(plugin, found))

    def choose(self, kind: str, name: str, where: str) -> FoundPlugin:
        """The one plugin that a name means, not imported yet.

        Raises:
            UserError: The name is unknown, ambiguous or not allowed.
        """
        named = self._named(kind, name)
        allowed = [plugin for plugin in named if not self._forbidden_by(plugin)]
        label = kind.replace("_", " ")
        # A file that the user names is no accident: its plugins come before installed ones.
        if given := [plugin for plugin in allowed if plugin.from_file]:
            others = [f"{plugin.qualified_name} ({plugin.source})" for plugin in allowed if plugin not in given]
            allowed = given
            if others and len(given) == 1:
                self._note(f"{label} {name!r} is that of {given[0].source}, not {' or '.join(others)}")
        if len(allowed) == 1:
            return allowed[0]
        if not named:
            known = [plugin.qualified_name if ":" in name else plugin.name for plugin in self.found(kind)]
            misplaced = next((f"; {problem}" for problem in self.problems if f"has {name!r}" in problem), "")
            unread = "".join(f"; {problem}" for problem in self.problems if problem.startswith("the metadata of"))
            other = next(
                (f"; did you mean '{KINDS[it.kind].option} {name}'?" for it in self.found() if it.name == name), ""
            )
            other_task = OTHER_TASKS.get(name.lower().replace("-", "_")) if kind == "task" else None
            elsewhere = f"; {other_task.format(name.lower())}" if other_task else ""
            hint = misplaced or install_hint(name) or elsewhere or other or nearest(name, known)
            raise UserError(f"{where}: there is no {label} {name!r}{hint}{unread}")
        if not allowed:
            raise UserError(f"{where}: {named[0]} is not allowed by {' and '.join(self._forbidden_by(named[0]))}")
        names = " and ".join(f"{plugin.qualified_name} ({plugin.source})" for plugin in allowed)
        same = len({plugin.qualified_name for plugin in allowed}) < len(allowed)
        remedy = "rename one" if same else "give the qualified name"
        raise UserError(f"{where}: {label} {name!r} is ambiguous: {names}; {remedy}")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _named(self, kind: str, name: str) -> list[FoundPlugin]:
        return [plugin for plugin in self._called(name) if plugin.kind == kind]

    def _called(self, name: str) -> list[FoundPlugin]:
        """The plugins of all kinds with a name or a qualified name."""
        distribution, _, bare = name.partition(":")
        qualified = (bare, normalize_distribution(distribution))
        return [
            plugin
            for plugin in self._plugins
            if plugin.name == name or (plugin.name, normalize_distribution(plugin.distribution)) == qualified
        ]

    def _forbidden_by(self, found: FoundPlugin) -> list[str]:
        """The allow-lists that forbid a plugin, by where they are given."""
        distribution = normalize_distribution(found.distribution)
        if found.from_file or distribution == BUILT_IN:
            return []
        return [origin for origin, allowed in self._allow_lists.items() if distribution not in allowed]
