"""`pytest --swiftplug` checks every plugin of the distribution under test; without it, nothing is imported."""

import subprocess
import sys
from typing import Any

import pytest

# pytester forgets the modules that one of its sessions is the first to import; these would then exist twice.
import swiftplug.config.yaml_file
import swiftplug.plugin.registry.trials
import swiftplug.testing.check  # noqa: F401

pytest_plugins = ["pytester"]

PLUGINS = """
from swiftplug.plugin import ORM

class Good(ORM):
    def __call__(self, infer_requests, ground_truths, **kwargs):
        return [1.0 for _ in infer_requests]

class OneForAll(ORM):
    def __call__(self, infer_requests, ground_truths, **kwargs):
        return [1.0]

class Prefixed:
    def __init__(self, prefix: str):
        self.prefix = prefix

    def __call__(self, tool_names, tool_descs):
        return self.prefix + ", ".join(tool_names)
"""
GROUPS = {"orms": {"good": "acme:Good", "short": "acme:OneForAll"}, "tools": {"prefixed": "acme:Prefixed"}}
PYPROJECT = """
[project]
name = "acme"
[tool.pytest.ini_options]
swiftplug = true
swiftplug_options = ["tools:prefixed.prefix='Tools: '"]
swiftplug_expected_failures = ["orm:short: knows one answer"]
"""
EXPECTED_FAILURE = 'swiftplug_expected_failures = ["orm:short: knows one answer"]\n'


@pytest.fixture
def acme(install: Any, pytester: pytest.Pytester) -> pytest.Pytester:
    """A project whose distribution is installed, with settings that let its check pass, and a test of its own."""
    install("acme", GROUPS, {"acme.py": PLUGINS})
    pytester.makepyprojecttoml(PYPROJECT)
    pytester.makepyfile(test_own="def test_own(): pass")
    return pytester


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", *arguments)


def test_each_entry_point_is_a_test(acme: pytest.Pytester) -> None:
    result = run(acme, "-v", "-rx")
    result.assert_outcomes(passed=3, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            "test_own.py::test_own PASSED*",
            "swiftplug::orm::good PASSED*",
            "swiftplug::tools::prefixed PASSED*",
            "swiftplug::orm::short XFAIL (knows one answer)*",
        ],
        consecutive=False,
    )


def test_a_failure_is_the_message_alone(acme: pytest.Pytester) -> None:
    acme.makepyprojecttoml(PYPROJECT.replace(EXPECTED_FAILURE, ""))
    result = run(acme)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*_ swiftplug::orm::short _*", "orm 'OneForAll' returned 1 reward for * candidates*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*check.py*")


def test_a_plugin_that_passes_in_spite_of_its_expected_failure_fails(acme: pytest.Pytester) -> None:
    acme.makepyprojecttoml(PYPROJECT.replace("orm:short: knows", "orm:good: knew"))
    result = run(acme, "-k", "good")
    result.assert_outcomes(failed=1, deselected=3)
    result.stdout.fnmatch_lines(["*XPASS(strict)*knew one answer*"])


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (["-k", "prefixed"], 1),
        (["swiftplug::orm::good"], 1),
        (["swiftplug::orm::good", "test_own.py"], 2),
        (["test_own.py"], 1),
        (["test_own.py", "--swiftplug"], 3),
        (["."], 3),
        (["--swiftplug=acme"], 2),
    ],
)
def test_what_is_named_is_run(acme: pytest.Pytester, arguments: list[str], passed: int) -> None:
    assert run(acme, *arguments).parseoutcomes()["passed"] == passed


def test_a_file_is_checked(pytester: pytest.Pytester) -> None:
    source = PLUGINS.replace("import ORM", "import ORM, register_orm").replace(
        "class Good", '@register_orm("good")\nclass Good'
    )
    pytester.makepyfile(mine=source, test_own="def test_own(): pass")
    result = run(pytester, "--swiftplug=mine.py", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["swiftplug::orm::good PASSED*"])


def test_a_broken_module_and_a_missing_option_are_told(install: Any, pytester: pytest.Pytester) -> None:
    points = {"tools": {"prefixed": "acme:Prefixed"}, "orms": {"broken": "missing_module:ORM"}}
    install("acme", points, {"acme.py": PLUGINS})
    result = run(pytester, "--swiftplug=acme")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "orm 'broken' of acme 1.0 is broken: ModuleNotFoundError: No module named 'missing_module'*",
            "tools 'Prefixed'* needs the option 'prefix'*; add to swiftplug_options: tools:prefixed.prefix=VALUE",
        ]
    )


@pytest.mark.parametrize(
    ("pyproject", "arguments", "error"),
    [
        ("", ["--swiftplug"], "*has no pyproject.toml or setup.cfg that names a distribution; add --swiftplug=DIST"),
        ("[project]\nname = 5", ["--swiftplug"], "*has no pyproject.toml or setup.cfg that names a distribution; *"),
        (
            "",
            ["--swiftplug=acne"],
            "no installed distribution 'acne' has entry points of swiftplug; did you mean 'acme'?",
        ),
        ("", ["--swiftplug", "."], "no installed distribution '-' has *; give --swiftplug after the paths"),
        ("", ["--swiftplug=nothing.py"], "--plugin nothing.py: there is no such Python file"),
        (PYPROJECT, ["swiftplug::orm::god"], "there is no test swiftplug::orm::god; *"),
        (
            PYPROJECT.replace("orm:short:", "orm:shirt:"),
            [],
            "swiftplug_expected_failures: there is no plugin 'orm:shirt' here; did you mean 'orm:short'?",
        ),
        (PYPROJECT.replace("prefix='", "'"), [], "swiftplug_options: * expected KIND:NAME.OPTION=VALUE"),
        (
            '[project]\nname = "acme"\n[project.entry-points."swiftplug.orms"]\ngood = "acme:Good"\nnew = "acme:New"',
            ["--swiftplug"],
            'only pyproject.toml has new = "acme:New" in swiftplug.orms; install acme again, with: pip install -e .',
        ),
    ],
)
def test_mistakes_end_the_session(acme: pytest.Pytester, pyproject: str, arguments: list[str], error: str) -> None:
    acme.makepyprojecttoml(pyproject)
    result = run(acme, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {error}"])


def test_nothing_is_imported_where_it_is_not_asked_for() -> None:
    code = "import sys, pytest; before = {*sys.modules}; import swiftplug.testing.pytest_plugin; "
    code += "print(*sorted({*sys.modules} - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["swiftplug", "swiftplug.testing", "swiftplug.testing.pytest_plugin"]
