"""The pytest plugin: checks each entry point of the distribution under test, with no test code. Off unless asked for.

Pytest imports this module wherever swiftplug is installed, so what it needs is imported when it is used.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from swiftplug.plugin.registry import FoundPlugin

_PREFIX = "swiftplug::"
_CHECKS = pytest.StashKey["list[PluginCheck]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the settings."""
    parser.getgroup("swiftplug", "plugins of swiftplug").addoption(
        "--swiftplug",
        nargs="?",
        const="",
        action="append",
        metavar="DIST",
        help="check every swiftplug plugin of the installed distribution DIST, or of a file FILE.py; without a value, "
        "of the distribution that pyproject.toml or setup.cfg in the root directory names. Each is a test, such as "
        "swiftplug::loss::poly",
    )
    parser.addini("swiftplug", "check the plugins of swiftplug, as --swiftplug does", "bool", False)
    parser.addini(
        "swiftplug_options", "options of a plugin when it is checked, a line each: engine:echo.file=a.txt", "linelist"
    )
    parser.addini(
        "swiftplug_expected_failures",
        "plugins that are known to fail their check, a line each, with the reason: loss:poly: needs a GPU",
        "linelist",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Find the plugins to check: an error ends the session before pytest-xdist has started its workers."""
    config = session.config
    chosen = [argument for argument in config.args if argument.startswith(_PREFIX)]
    if not chosen and not _is_on(config):
        return
    sources: list[str] = config.getoption("--swiftplug") or [""]
    if chosen or (any(sources) and config.args_source is not config.ArgsSource.ARGS):
        config.args[:] = [argument for argument in config.args if chosen and argument not in chosen]
    from swiftplug.errors import UserError

    try:
        found = [plugin for source in sources for plugin in _find(source, config.rootpath)]
        checks = {f"{plugin.kind}:{plugin.name}": PluginCheck.from_parent(session, found=plugin) for plugin in found}
        _read_settings(config, checks)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    by_id = {check.nodeid: check for check in checks.values()}
    if unknown := [each for each in chosen if each not in by_id]:
        raise pytest.UsageError(f"there is no test {unknown[0]}; there are: {', '.join(by_id)}")
    config.stash[_CHECKS] = [by_id[each] for each in chosen or by_id]


def _is_on(config: pytest.Config) -> bool:
    """Whether to check all plugins. Where the settings say so, not if files or tests are named on the command line."""
    if config.getoption("--swiftplug"):
        return True
    named = config.args if config.args_source is config.ArgsSource.ARGS else []
    return bool(config.getini("swiftplug")) and (not named or any(Path(argument).is_dir() for argument in named))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks to the tests, before others are selected."""
    checks: list[PluginCheck] = config.stash.get(_CHECKS, [])
    items += checks


class PluginCheck(pytest.Item):
    """The check of one plugin.

    Args:
        found: The plugin.

    Attributes:
        options: Its options.
    """

    def __init__(self, *, found: "FoundPlugin", **kwargs: Any) -> None:
        name = f"{found.kind}::{found.name}"
        super().__init__(name, nodeid=f"{_PREFIX}{name}", **kwargs)
        self.extra_keyword_matches.add("swiftplug")
        self.found = found
        self.options: dict[str, Any] = {}

    def runtest(self) -> None:
        """Load the plugin, and run its contract."""
        from swiftplug.plugin.registry.errors import MissingExtraError, describe_error
        from swiftplug.testing import ContractBroken, check_plugin

        try:
            plugin = self.found.load()
        except MissingExtraError as error:  # as importorskip does: the plugin is not at fault
            pytest.skip(f"{self.found} {error}")
        except (Exception, SystemExit) as error:
            raise ContractBroken(f"{self.found} is broken: {describe_error(error)}") from error
        check_plugin(self.found.kind, plugin, **self.options)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message alone, where it says what is wrong."""
        from swiftplug.errors import UserError
        from swiftplug.testing import ContractBroken

        error = excinfo.value
        if not isinstance(error, ContractBroken | UserError):
            return super().repr_failure(excinfo, style)
        if not (needed := re.search(r"needs the option '(\w+)'", str(error))):
            return str(error)
        return f"{error}; add to swiftplug_options: {self.found.kind}:{self.found.name}.{needed[1]}=VALUE"

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it is, for the headings of failures."""
        return self.path, None, self.nodeid


def _read_settings(config: pytest.Config, checks: dict[str, PluginCheck]) -> None:
    """Give the checks their options, and mark those that are expected to fail."""
    from swiftplug.config.yaml_file import read_value
    from swiftplug.errors import UserError, nearest

    def parse(setting: str, pattern: str, form: str) -> list[tuple[PluginCheck, str, str]]:
        parsed = []
        for line in config.getini(setting):
            if not (match := re.fullmatch(pattern, line.strip())):
                raise UserError(f"{setting}: {line!r}; expected {form}")
            plugin, first, second = match.groups()
            if plugin not in checks:
                raise UserError(f"{setting}: there is no plugin {plugin!r} here{nearest(plugin, checks)}")
            parsed.append((checks[plugin], first, second))
        return parsed

    for check, option, value in parse("swiftplug_options", r"(\w+:[^=]+)\.(\w+)=(.*)", "KIND:NAME.OPTION=VALUE"):
        check.options[option] = read_value(value, f"swiftplug_options: {option}")
    for check, _, reason in parse("swiftplug_expected_failures", r"(\w+:[^:]+)(:\s*)(.+)", "KIND:NAME: REASON"):
        check.add_marker(pytest.mark.xfail(reason=reason, strict=True))  # strict: one that passes leaves the list


def _find(source: str, root: Path) -> "list[FoundPlugin]":
    """The plugins of a file or of an installed distribution; without `source`, of that which is developed in `root`."""
    from swiftplug.errors import UserError, nearest
    from swiftplug.plugin.registry import KINDS
    from swiftplug.plugin.registry.files import load_file
    from swiftplug.plugin.registry.finder import find_installed, normalize_distribution

    if source.endswith(".py"):
        return [*load_file(source)]
    project = {} if source else _project(root)
    name = normalize_distribution(source or project["name"])
    problems: list[str] = []
    installed = find_installed(problems)
    found = [plugin for plugin in installed if normalize_distribution(plugin.distribution) == name]
    for problem in problems:
        if name in map(normalize_distribution, problem.split()):
            raise UserError(problem)
    if not source:
        declared = {
            (group, plugin, re.sub(r"\s|\[.*", "", value))
            for group, plugins in project.get("entry-points", {}).items()
            for plugin, value in plugins.items()
            if group.startswith("swiftplug.")
        }
        differ = declared ^ {(KINDS[plugin.kind].group, plugin.name, plugin.value) for plugin in found}
        if declared and differ:
            group, plugin, value = different = min(differ)
            where = "pyproject.toml" if different in declared else "the installed metadata"
            raise UserError(
                f'only {where} has {plugin} = "{value}" in {group}; install {name} again, with: pip install -e .'
            )
    if not found:
        known = {plugin.distribution for plugin in installed}
        place = "; give --swiftplug after the paths" if source and Path(source).exists() else ""
        raise UserError(
            f"no installed distribution {name!r} has entry points of swiftplug{place or nearest(name, known)}"
        )
    return found


def _project(root: Path) -> dict[str, Any]:
    """The metadata of the distribution whose source is in a folder, with its `name`."""
    import configparser
    import tomllib

    from swiftplug.errors import UserError

    pyproject = root / "pyproject.toml"
    table = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project") if pyproject.exists() else None
    project: dict[str, Any] = table if isinstance(table, dict) else {}
    if not isinstance(project.get("name"), str):
        setup = configparser.ConfigParser()
        setup.read(root / "setup.cfg")
        if not (name := setup.get("metadata", "name", fallback=None)):
            raise UserError(
                f"{root} has no pyproject.toml or setup.cfg that names a distribution; add --swiftplug=DIST"
            )
        project["name"] = name
    return project
