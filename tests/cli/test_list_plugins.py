"""`swiftplug list-plugins` in a process of its own, with distributions on its path."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from swiftplug.cli.list_plugins import list_plugins

GOOD = 'def f(outputs, labels):\n    """Does good."""\n'


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run the command with folders on the path of the process."""

    def run(*options: str, sites: Sequence[Path] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "SWIFTPLUG_PLUGINS")}
        env |= {"PYTHONPATH": os.pathsep.join(map(str, sites)), **environment}
        command = [sys.executable, "-m", "swiftplug", "list-plugins", *options]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    return run


@pytest.fixture
def sites(install: Any) -> list[Path]:
    return [
        install(
            "acme",
            {kind: {"good": "acme.good:f", "bad": "acme.bad:f"} for kind in ("losses", "tools")},
            {"acme/__init__.py": "print('noise')", "acme/good.py": GOOD, "acme/bad.py": "import nothing_at_all"},
            version="1.2",
        ),
        install(
            "needy",
            {"prms": {"needy": "needy:f [fast]"}},
            {"needy.py": "raise RuntimeError('imported')"},
            requires=['no-such-thing; extra == "fast"'],
        ),
    ]


def test_what_the_encoding_of_the_output_lacks_is_escaped(run: Any, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(
        'from swiftplug.plugin import register_loss_func\n@register_loss_func("x")\ndef f(outputs, labels):\n'
        '    """Is é 😀."""\n',
        encoding="utf-8",
    )
    given = ["--plugin", "p.py", "--kind", "loss", "--search", "is"]
    done = run(*given, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"Is \u00e9 \ud83d\ude00" in done.stdout
    assert [row["summary"] for row in json.loads(run(*given, "--json", PYTHONIOENCODING="ascii").stdout)] == [
        "Is é 😀."
    ]


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {f"{row['kind']} {row['qualified_name']}": row for row in json.loads(done.stdout)}


def test_json_has_everything_and_imports_nothing(run: Any, sites: list[Path]) -> None:
    done = run("--json", sites=sites)
    assert done.returncode == 0, done.stderr
    assert "noise" not in done.stdout + done.stderr
    listed = rows(done)
    assert listed["loss acme:good"] == {
        "kind": "loss",
        "name": "good",
        "qualified_name": "acme:good",
        "distribution": "acme",
        "version": "1.2",
        "value": "acme.good:f",
        "summary": "Does good.",
    }
    assert listed["loss acme:bad"]["summary"] is None
    assert "prm needy:needy" in listed
    assert {"loss swiftplug:focal", "loss_scale swiftplug:react", "tuner swiftplug:lora"} <= listed.keys()


def test_one_kind(run: Any, sites: list[Path]) -> None:
    assert {row["kind"] for row in json.loads(run("--json", "--kind", "loss", sites=sites).stdout)} == {"loss"}
    done = run("--kind", "optimiser")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --kind: there is no kind 'optimiser'; did you mean 'optimizer'?"


def test_search(sites: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    def found(*words: str, kind: str | None = None) -> list[str]:
        list_plugins(search=[*words], kind=kind, as_json=True)
        return [f"{row['kind']} {row['name']}" for row in json.loads(capsys.readouterr().out)]

    assert found("LoRA") == ["optimizer lorap", "tuner lora"]
    assert found("label smoothing") == found("smoothing", "loss") == ["loss label_smoothing"]
    assert found("acme") == ["loss bad", "loss good", "tools bad", "tools good"]
    assert found("acme", "good", kind="tools") == ["tools good"]
    for options, said in (({}, "plugin"), ({"kind": "loss_scale"}, "loss scale")):
        with pytest.raises(typer.Exit) as ended:
            list_plugins(search=["no such", "words"], **options)
        assert ended.value.exit_code == 1
        assert capsys.readouterr() == ("", f"No {said} has no and such and words.\n")


def test_check_distinguishes_broken_from_needy(run: Any, sites: list[Path]) -> None:
    done = run("--check", "--json", "--kind", "tools", sites=sites)
    assert done.returncode == 1
    listed = rows(done)
    assert (listed["tools acme:good"]["status"], listed["tools acme:good"]["cause"]) == ("fits", "")
    assert listed["tools acme:bad"]["status"] == "broken"
    assert "No module named 'nothing_at_all'" in listed["tools acme:bad"]["cause"]
    assert "noise" in done.stderr
    done = run("--check", "--kind", "prm", sites=sites, COLUMNS="200")
    assert done.returncode == 0, done.stdout
    assert "needs an extra: needs no-such-thing: pip install 'needy[fast]'" in done.stdout


def test_the_time_limit_interrupts_no_import() -> None:
    """Libraries that are imported by half work no more for the plugins that follow."""
    code = (
        "import swiftplug.cli.list_plugins as command\n"
        "command._SECONDS = 0.05\n"
        "for kind in ('task', 'optimizer', 'metric'):\n"
        "    command.list_plugins(kind=kind, check=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert not re.search("import|broken", done.stdout, re.IGNORECASE), done.stdout


def test_a_file_is_listed_with_the_rest(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from swiftplug.plugin import *\n\n@register_loss_func('mine')\n" + GOOD)
    row = rows(run("--json", "--plugin", "mine.py"))["loss file:mine"]
    assert (row["value"], row["version"], row["summary"]) == ("mine.py:f", "", "Does good.")
    headings = [
        line.split()[0] for line in run("--plugin", "mine.py", COLUMNS="160").stdout.splitlines() if "(--" in line
    ]
    assert sorted(headings) == sorted(set(headings))  # its kinds are those of the others
    path.write_text("\n1 / 0\n")
    done = run("--plugin", "mine.py")
    assert (done.returncode, done.stderr) == (2, "error: mine.py:2: ZeroDivisionError: division by zero\n")


def test_what_the_allow_list_keeps_out_is_named(run: Any, sites: list[Path]) -> None:
    done = run("--json", sites=sites, SWIFTPLUG_PLUGINS="needy")
    assert {row["distribution"] for row in json.loads(done.stdout)} == {"needy", "swiftplug"}
    assert "acme" in done.stderr


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_table_keeps_within_the_terminal_and_loses_nothing(run: Any, sites: list[Path], width: int) -> None:
    done = run(sites=sites, COLUMNS=str(width))
    assert max(map(len, done.stdout.splitlines())) <= width
    assert "\x1b" not in done.stdout
    letters = "".join(done.stdout.split())
    listed = json.loads(run("--json", sites=sites).stdout)
    if width >= 80:
        for row in listed:
            assert row["name"] in letters
    headings = re.findall(r"^(\w+) \(--", done.stdout, re.MULTILINE)  # a task may have the name of a kind
    assert headings == list(dict.fromkeys(row["kind"] for row in listed))
    if width == 160:
        line = next(line for line in done.stdout.splitlines() if line.startswith("good "))
        assert line.split() == ["good", "Does", "good.", "acme", "1.2"]
    if width >= 80:
        assert "acme" in letters and "swiftplug-plugins-example" in letters
    assert "acme.good:f" not in letters
    verbose = run("--verbose", sites=sites, COLUMNS=str(width))
    assert max(map(len, verbose.stdout.splitlines())) <= width
    assert "acme.good:f" in "".join(verbose.stdout.split())


def test_piped_it_is_one_line_a_plugin(run: Any, sites: list[Path]) -> None:
    done = run(sites=sites)
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["KIND", "NAME", "DISTRIBUTION", "SUMMARY"]
    assert len(lines) == len(json.loads(run("--json", sites=sites).stdout))
    assert ["loss", "good", "acme", "1.2", "Does good."] in [line.split(maxsplit=4) for line in lines]
    header, *lines = run("--verbose", sites=sites).stdout.splitlines()
    assert header.split() == ["KIND", "NAME", "DISTRIBUTION", "OBJECT", "SUMMARY"]
    assert ["loss", "good", "acme", "1.2", "acme.good:f", "Does good."] in [line.split(maxsplit=5) for line in lines]


def test_nothing_heavy_is_imported(sites: list[Path]) -> None:
    code = (
        "import sys\nfrom swiftplug.cli.main import main\nsys.argv = ['swiftplug', 'list-plugins']\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'peft'} & set(sys.modules)\nassert not heavy, heavy\n"
        "assert not [it for it in sys.modules if it.startswith('swiftplug.builtin')]\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sites)), "COLUMNS": "160"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True)
