"""What a shell offers at TAB, and that its script shows it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from swiftplug.cli import completion
from swiftplug.cli.main import app
from swiftplug.plugin.registry import KINDS, Registry

COMMAND = typer.main.get_command(app)


def complete(line: str, shell: str = "fish") -> list[str]:
    """The candidates at the end of a line, without what they mean."""
    text = completion.complete(COMMAND, f"complete_{shell}", f"swiftplug {line}")
    return [candidate.partition("\t")[0] for candidate in text.splitlines()]


def test_commands_and_options() -> None:
    assert {"train", "sample", "list-plugins", "show-plugin"} <= {*complete("")}
    assert complete("tra") == ["train"]
    assert complete("train --loss") == ["--loss", "--loss-scale"]
    assert complete("no-such-command --x") == []
    assert complete("list-plugins --kind ") == [*KINDS]
    assert complete("preview --format ") == ["text", "html", "json"]


@pytest.mark.parametrize("kind", ["loss", "loss_scale", "optimizer", "tuner", "metric", "callback", "tools", "task"])
def test_every_installed_plugin_of_a_kind(kind: str) -> None:
    assert complete(f"train {KINDS[kind].option} ") == [found.name for found in Registry.discover().found(kind)]


def test_names_are_completed_in_every_form() -> None:
    assert complete("train --loss fo") == ["focal"]
    assert complete("train --loss=fo") == ["--loss=focal"]
    assert complete("train --loss swiftplug:fo") == ["swiftplug:focal"]
    assert complete("train --loss-scale last_round+rea") == ["last_round+react"]
    assert complete("show-plugin lorap") == ["lorap"]
    assert "math" in complete("sample --orm format --orm ")


def test_keys_of_the_config(tmp_path: Path) -> None:
    assert complete("train --set tr") == ["training."]
    assert complete("train --set training.learning_r") == ["training.learning_rate="]
    assert complete("train --set data.max_l") == ["data.max_length="]
    assert complete("train --set data.packing=") == ["data.packing=true", "data.packing=false"]
    assert complete("sample --set prm_reduce=m") == ["prm_reduce=min", "prm_reduce=mean"]
    assert complete("train --set no_such.") == []
    assert complete("train --set loss=fo") == ["loss=focal"]


def test_options_of_the_chosen_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete("train --tuner lora --set tuner.lora_a") == ["tuner.lora_alpha="]
    assert complete("train --tuner lora --set tuner.bias=") == [
        f"tuner.bias={it}" for it in ("none", "all", "lora_only")
    ]
    assert complete("train --tuner lora --set tuner.use_d=") == []
    assert complete("train --set tuner.") == []  # those of full, the default
    assert complete("train --metric nlg --metric acc --set metrics.") == ["metrics.nlg.", "metrics.acc."]
    assert complete("train --metric nlg --set metrics.nlg.") == ["metrics.nlg.max_new_tokens="]
    assert complete("train --set loss.gam --loss focal --set loss.") == ["loss.gamma="]
    Path("mine.yaml").write_text("optimizer: {name: muon, momentum: 0.9}\n")
    Path("bad.yaml").write_text("optimizer: [\n")
    assert complete("train mine.yaml --set optimizer.mo") == ["optimizer.momentum="]
    assert complete("train bad.yaml --set optimizer.mo") == []


def test_files_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "b.yml", "c.jsonl", "my plugins.py", "runs/first/config.yaml", ".hidden/x.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    assert complete("train ") == ["a.yaml", "b.yml", "runs/"]
    assert complete("train runs/") == complete("predict runs/") == ["runs/first"]
    assert "c.jsonl" in complete("train --dataset ")
    assert {"c.jsonl", "arithmetic"} <= {*complete("predict runs/first ")}
    assert complete("train --plugin m") == ["my plugins.py"]
    assert complete("train --plugin m", "bash") == [r"my\ plugins.py"]
    assert complete("train .h") == [".hidden/"]
    assert complete(f"train {tmp_path}/a") == [f"{tmp_path}/a.yaml"]


def test_bash_replaces_only_what_follows_its_last_word_break() -> None:
    assert complete("train --tuner lora --set tuner.bias=lo", "bash") == ["lora_only"]
    assert complete("train --loss swiftplug:fo", "bash") == ["focal"]
    assert complete("train --loss=fo", "bash") == ["focal"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("swiftplug train --loss foc", "focal"),
        ("swiftplug train --set data.max_l", "data.max_length="),
        ("swiftplug x y", ""),
    ],
)
def test_the_script_of_bash(line: str, expected: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash is installed")
    program = (
        f"compopt() {{ :; }}; {completion.SCRIPTS['bash']}\nswiftplug() {{ {sys.executable} -m swiftplug; }}\n"
        'COMP_LINE="$LINE"; COMP_POINT=${#COMP_LINE}; _swiftplug_completion swiftplug; echo "${COMPREPLY[*]}"'
    )
    done = subprocess.run([bash, "-c", program], capture_output=True, text=True, env={**os.environ, "LINE": line})
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_the_script_is_installed_where_the_shell_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for shell, script in completion.SCRIPTS.items():
        path = completion.install(shell)
        assert path.is_relative_to(tmp_path)
        assert path.read_text() == script
    assert str(tmp_path / ".bash_completions" / "swiftplug.sh") in (tmp_path / ".bashrc").read_text()


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom swiftplug.cli.main import main\ntry:\n    main()\nfinally:\n    assert not "
        "{'torch', 'transformers', 'datasets', 'numpy', 'peft', 'rich'} & set(sys.modules)"
    )
    env = {**os.environ, completion.INSTRUCTION: "complete_fish"}
    env[completion.LINE] = "swiftplug train --tuner lora --set tuner.r"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.stdout, done.stderr) == ("tuner.r=\tThe rank.\n", "")
