"""`swiftplug new-plugin` writes plugins of every kind that keep their contracts, and nothing where it cannot."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from swiftplug.cli.new_plugin import new_plugin
from swiftplug.errors import UserError
from swiftplug.plugin.registry import KINDS, Registry
from swiftplug.testing import check_plugin


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distribution with a plugin of every kind, and a file of them."""
    folder = tmp_path_factory.mktemp("new")
    new_plugin("swiftplug-My.demo", [*KINDS], to=folder / "demo")
    new_plugin("my-demo", [*KINDS], as_file=True, to=folder / "demo.py")
    return folder


@pytest.fixture(scope="module")
def entry_points(demo: Path) -> dict[str, dict[str, str]]:
    project = tomllib.loads((demo / "demo/pyproject.toml").read_text())["project"]
    assert project["name"] == "swiftplug-My.demo"
    groups: dict[str, dict[str, str]] = project["entry-points"]
    return groups


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_of_a_distribution_keeps_its_contract(
    kind: str, demo: Path, entry_points: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(demo / "demo/src"))
    module, _, obj = entry_points[KINDS[kind].group]["my_demo"].partition(":")
    assert module == f"swiftplug_my_demo.{kind}"
    check_plugin(kind, getattr(import_module(module), obj))
    assert f"from {module} import" in (demo / f"demo/tests/test_{kind}.py").read_text()


def test_every_plugin_of_a_file_is_registered(demo: Path) -> None:
    registry = Registry.discover(files=[demo / "demo.py"])
    found = {plugin.kind: plugin for plugin in registry.found() if plugin.from_file}
    assert set(found) == set(KINDS)
    assert {plugin.name for plugin in found.values()} == {"my_demo"}
    assert {registry.check(plugin) for plugin in found.values()} == {("fits", "")}


def test_ruff_finds_nothing(demo: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        subprocess.run([ruff, *command], cwd=demo / "demo", check=True)
    subprocess.run([ruff, "check", "--no-cache", "--select", "E4,E7,E9,F,I", "demo.py"], cwd=demo, check=True)


def test_it_says_what_to_type_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_plugin("swiftplug-own", ["loss", "orm", "loss"], to=tmp_path / "a b")
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/a b: loss 'own', orm 'own'. Next:",
        "",
        f"  cd '{tmp_path}/a b' && pip install -e '.[dev]'",
        "  pytest",
        "  swiftplug train --loss own",
        "  swiftplug train && swiftplug sample --orm own",
        "  python -m build",
    ]
    new_plugin("own.py", ["dataset"], as_file=True, to=tmp_path / "own.py")
    assert f"  swiftplug train --model tiny --plugin {tmp_path}/own.py --dataset own\n" in capsys.readouterr().out


def test_a_place_below_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    new_plugin("own", ["loss"], as_file=True, to=Path("~/below/own.py"))
    assert [*tmp_path.iterdir()] == [tmp_path / "below"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    new_plugin("own", ["tools"], to=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".github",
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src",
        "tests",
    }


@pytest.mark.parametrize(
    ("name", "kinds", "as_file", "error"),
    [
        ("own", ["lose"], False, "--kind: there is no kind 'lose'; did you mean 'loss'?"),
        ("own", [], False, "which kind of plugin? Add --kind KIND; choose from: task, "),
        ("-own", ["loss"], False, "'-own' is no name for plugins; expected letters, "),
        ("own plugin", ["loss"], True, "'own plugin' is no name for plugins; expected letters, "),
        ("2-own", ["loss"], False, "'2-own' is no name for plugins; expected letters, "),
        (
            "swiftplug-focal",
            ["orm", "loss"],
            False,
            "there is a loss 'focal' of swiftplug 0.1.0 already; choose another",
        ),
        ("swiftplug", ["loss"], False, "swiftplug 0.1.0 is installed already; choose another name, or uninstall it"),
        ("Swiftplug_Plugins_Example", ["loss"], False, "is installed already"),
        ("json", ["loss"], False, "called 'json', which is taken; choose another name, such as swiftplug-json"),
        ("tests", ["loss"], False, "called 'tests', which is taken; choose another name, such as swiftplug-tests"),
        ("a" * 300, ["loss"], False, "cannot write "),
        ("class", ["loss"], False, "called 'class', which is no module name; choose another name, such as swiftplug-"),
        (
            "torch",
            ["loss"],
            True,
            "torch.py would hide the installed module 'torch' from Python code beside it; choose",
        ),
        (
            "json.py",
            ["loss"],
            True,
            "json.py would hide the installed module 'json' from Python code beside it; choose",
        ),
        ("own.py", ["loss"], False, "own.py: add --file to write one file, or name a distribution, such as own"),
    ],
)
def test_what_cannot_be_named_is_refused(
    name: str, kinds: list[str], as_file: bool, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        new_plugin(name, kinds, as_file)
    assert error in str(raised.value)
    assert not [*tmp_path.iterdir()]


def test_nothing_is_overwritten_or_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept" / "own.py"
    kept.parent.mkdir()
    kept.write_text("mine")
    for path, as_file in ((kept, True), (kept.parent, False), (kept, False)):
        with pytest.raises(UserError, match=r" exists; choose another place with --to"):
            new_plugin("own", ["loss"], as_file, path)
    with pytest.raises(UserError, match=r"^cannot write .*/kept/own\.py/below: "):
        new_plugin("own", ["loss"], to=kept / "below")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        new_plugin("own", ["loss"], to=tmp_path / "new")
    assert [*tmp_path.rglob("*")] == [kept.parent, kept]
    assert kept.read_text() == "mine"
