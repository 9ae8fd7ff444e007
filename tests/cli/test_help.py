"""The command line answers at once, says what there is, and imports nothing heavy on the way."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from swiftplug import __version__

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "matplotlib", "numpy", "pandas", "pyarrow")
REPORT_IMPORTS = f"""
import sys
from swiftplug.cli.main import main
try:
    main()
finally:
    print("imported:", *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""
TRAIN_OPTIONS = {
    *("--task", "--model", "--dataset", "--eval-dataset", "--template", "--output-dir", "--set", "--plugin"),
    *("--loss", "--loss-scale", "--metric", "--optimizer", "--tools", "--tuner", "--callback"),
    *("--resume", "--nproc", "--dry-run", "--debug"),
}
EMPTY = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
SAMPLE_OPTIONS = {
    *("--model", "--adapter", "--dataset", "--engine", "--orm", "--prm", "--tools", "--system", "--candidates-file"),
    *("--num-return-sequences", "--n-best-to-keep", "--max-new-tokens", "--temperature", "--top-p", "--top-k"),
    *("--prm-threshold", "--prm-reduce", "--easy-query-threshold", "--include-reference", "--shard"),
    *("--output-dir", "--resume", "--overwrite", "--plugin", "--set", "--dry-run", "--debug"),
}


def swiftplug(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swiftplug", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        [],
        ["train", "--help"],
        ["preview", "--help"],
        ["list-plugins"],
        ["list-plugins", "--json"],
        ["show-plugin", "lora"],
        ["trian"],
        ["train", "missing.yaml"],
        ["train", "--set", "trainng.x=1"],
        ["preview", "--task", "x"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", REPORT_IMPORTS, *arguments], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].split() == ["imported:"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["list-plugins"], ["list-plugins", "--json"], ["show-plugin", "focal"]],
    ids=" ".join,
)
def test_what_has_no_config_imports_no_pydantic(arguments: list[str]) -> None:
    """Also not through typer, which since 0.29 builds an adapter of pydantic for a parameter that is not given, too."""
    code = REPORT_IMPORTS.replace(repr(HEAVY), repr(("pydantic", "pydantic_core", "importlib.metadata")))
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].split() == ["imported:"]


def test_config_room_imports_nothing_heavy() -> None:
    code = (
        "import sys, swiftplug.config.load as load\n"
        "load.to_yaml(load.load_train_config(None, {}, []).config)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["list-plugins"]], ids=" ".join)
def test_answers_soon(arguments: list[str], tmp_path: Path) -> None:
    """Little longer than the help of an empty command takes, which is 0.12 s; this is what keeps it under 0.3 s.

    The least of several times is what a quiet moment gives, and a slow machine is as slow at both; a busy one gets
    more tries. (To run the empty command takes as long as its help since typer 0.29, and less before, which loads
    neither pydantic nor rich for it.)
    """
    # At a terminal, and compiled as pip leaves every package; of a checkout, PYTHONDONTWRITEBYTECODE would prevent it.
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}

    def processor_seconds(*command: str) -> float:
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime

    ours = least = math.inf
    for tried in range(60):
        ours = min(ours, processor_seconds("-m", "swiftplug", *arguments))
        least = min(least, processor_seconds("-c", EMPTY, "--help"))
        if tried >= 8 and ours < 1.6 * least:
            break
    assert ours < 1.6 * least, (ours, least)


def test_help_shows_every_command() -> None:
    done = swiftplug("--help")
    assert done.returncode == 0
    commands = ["train", "sample", "preview", "list-plugins"]
    assert re.findall(rf"│ ({'|'.join(commands)}) ", done.stdout) == commands
    assert swiftplug().stdout == done.stdout


@pytest.mark.parametrize("command", ["train", "sample", "preview", "list-plugins"])
def test_help_of_a_command_gives_an_example_or_its_options(command: str) -> None:
    done = swiftplug(command, "--help")
    assert done.returncode == 0
    shown = set(re.findall(r"(--[a-z-]+)", done.stdout))
    expected = {
        "train": TRAIN_OPTIONS,
        "sample": SAMPLE_OPTIONS,
        "preview": TRAIN_OPTIONS - {"--resume", "--nproc", "--dry-run"} | {"--rows", "--format", "--output"},
        "list-plugins": {"--kind", "--json", "--check"},
    }[command]
    assert expected <= shown
    if command != "list-plugins":
        assert f"Example: swiftplug {command} " in done.stdout
        assert {"Model and data", "Plugins", "Run"} <= set(re.findall(r"╭─ ([\w ]+?) ─", done.stdout))


def test_help_shows_defaults_and_choices() -> None:
    done = swiftplug("sample", "--help").stdout
    for text in ("Number of answers per question. [default: 8]", "[default: transformers]", "min|mean|last|prod"):
        assert text in done


def test_version() -> None:
    assert swiftplug("--version").stdout == f"swiftplug {__version__}\n"


def test_console_script_is_the_module(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("swiftplug")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"swiftplug {__version__}\n"
