"""Discovery reads what pip would have written, and nothing else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.plugin.registry.finder import find_installed, missing_requirements

BOOM = "raise RuntimeError('imported')\n"


def of(distribution: str) -> list[tuple[str, str, str, str]]:
    return [
        (it.kind, it.name, it.version, it.value) for it in find_installed() if it.distribution.lower() == distribution
    ]


def test_finds_what_a_distribution_declares_without_importing_it(install: Any) -> None:
    groups = {"losses": {"a": "boom.loss:A"}, "orms": {"b": "boom:B [big-extra, other]"}, "unheard_of": {"c": "boom:C"}}
    install("Boom", groups, {"boom/__init__.py": BOOM, "boom/loss.py": BOOM}, version="2.0")
    assert of("boom") == [("loss", "a", "2.0", "boom.loss:A"), ("orm", "b", "2.0", "boom:B")]
    assert "boom" not in sys.modules
    (orm,) = (it for it in find_installed() if it.qualified_name == "Boom:b")
    assert orm.extras == ("big-extra", "other")


def test_two_distributions_with_one_name_are_both_found(install: Any) -> None:
    for name in ("one", "two"):
        install(name, {"losses": {"same": f"{name}:f"}}, {f"{name}.py": BOOM})
    found = [it.qualified_name for it in find_installed() if it.name == "same"]
    assert found == ["one:same", "two:same"]


def test_one_distribution_twice_on_the_path_counts_once_and_the_first_wins(install: Any) -> None:
    install("acme-x", {"losses": {"a": "acme:old", "gone": "acme:gone"}}, {"acme.py": BOOM}, version="1.0")
    install("Acme_X", {"losses": {"a": "acme:new"}}, {"acme.py": BOOM}, version="2.0")
    assert [it.value for it in find_installed() if it.distribution in ("acme-x", "Acme_X")] == ["acme:new"]


def test_an_older_copy_behind_one_without_plugins_is_not_found(install: Any) -> None:
    """`import` would take the first copy, which has none of the modules that the second one names."""
    install("acme", {"losses": {"a": "acme:old"}}, {"acme.py": BOOM}, version="1.0")
    install("acme", {}, {"acme.py": BOOM}, version="2.0")
    assert of("acme") == []


def test_a_leftover_folder_without_metadata_disturbs_nothing(install: Any) -> None:
    site = install("half", {"losses": {"a": "half:f"}}, {})
    (site / "half-1.0.dist-info" / "METADATA").unlink()
    names = {it.qualified_name for it in find_installed()}
    assert "swiftplug:cross_entropy" in names
    assert "half:a" not in names


def test_a_malformed_object_reference_breaks_only_its_own_plugin(install: Any) -> None:
    install("odd", {"losses": {"bad": "not an object!", "good": "odd:f"}}, {"odd.py": "def f(outputs, labels): ..."})
    registry = Registry.discover()
    status = {it.name: registry.check(it).status for it in registry.found("loss") if it.distribution == "odd"}
    assert status == {"bad": "broken", "good": "fits"}


def test_requirements_of_an_extra_that_are_not_installed(install: Any) -> None:
    install(
        "acme",
        {"losses": {"a": "acme:f [fast]", "b": "acme:f"}},
        {"acme.py": BOOM},
        requires=[
            'no-such-thing>=2; extra == "fast"',
            'pytest>=1; extra == "fast"',
            'nor-this; extra == "slow"',
            'nor-that; extra == "fast" and python_version < "3"',
        ],
    )
    needed = {
        it.name: missing_requirements(it.distribution, it.extras)
        for it in find_installed()
        if it.distribution == "acme"
    }
    assert needed == {"a": ["no-such-thing"], "b": []}


@pytest.mark.parametrize(
    "statement", ["import swiftplug.plugin", "import swiftplug.plugin.registry as r; list_them(r)"]
)
def test_the_public_api_and_discovery_import_nothing_heavy(statement: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "def list_them(r):\n"
        "    assert [it.summary for it in r.Registry.discover().found()]\n"
        f"{statement}\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'peft', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not [it for it in sys.modules if it.startswith('swiftplug.builtin')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("metadata", "entry_points", "problem"),
    [
        ("Name: broken\n", "[swiftplug.losses]\nx = a:b\n", "the metadata of broken is broken: it has no version"),
        ("Name: broken\nVersion: 1.0\n", "[swiftplug.losses]\nx\n", "the metadata of broken is broken: "),
        (
            "Name: broken\nVersion: 1.0\n",
            "[swiftplug.loss]\nx = a:b\n",
            "broken 1.0 has 'x' in the entry-point group 'swiftplug.loss', which does not exist; "
            "did you mean 'swiftplug.losses'?",
        ),
        ("Name: broken\nVersion: 1.0\n", b"\xff[swiftplug.losses]\nx = a:b\n", None),
    ],
)
def test_broken_metadata_is_reported_and_disturbs_nobody(
    install: Any, metadata: str, entry_points: str | bytes, problem: str | None
) -> None:
    info = install("broken", {}, {}) / "broken-1.0.dist-info"
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_bytes(entry_points if isinstance(entry_points, bytes) else entry_points.encode())
    registry = Registry.discover()
    assert [text.startswith(problem or "") for text in registry.problems] == [True] * (problem is not None)
    assert registry.resolve("loss", PluginChoice(name="focal"), "--loss").bound
    if problem:
        with pytest.raises(UserError, match=r"--loss: there is no loss 'x'; ") as caught:
            registry.resolve("loss", PluginChoice(name="x"), "--loss")
        assert f"; {problem}" in str(caught.value)
