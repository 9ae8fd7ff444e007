"""`swiftplug version`: what it says is what is installed, and nothing private."""

import getpass
import platform
from pathlib import Path
from typing import Any

import importlib_metadata
import pytest
import torch

from swiftplug import __version__
from swiftplug.cli.version import version


def facts(text: str) -> dict[str, str]:
    return dict(line.removeprefix("- ").split(": ", 1) for line in text.splitlines())


def test_without_verbose_it_is_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    version()
    assert capsys.readouterr().out == f"swiftplug {__version__}\n"


def test_what_a_bug_report_needs(
    capsys: pytest.CaptureFixture[str], install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme", {"losses": {"x": "acme:f"}}, {"acme.py": "raise RuntimeError('imported')"}, version="1.2")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("SWIFTPLUG_CACHE", str(Path.home() / "cache of mine"))
    version(verbose=True)
    text = capsys.readouterr().out
    said = facts(text)
    assert said["swiftplug"] == __version__
    assert said["Python"].startswith(platform.python_version())
    assert said["torch"].startswith(torch.__version__)
    for name in ("transformers", "peft", "accelerate", "datasets", "trl"):
        assert said[name] == importlib_metadata.version(name)
    assert "acme 1.2" in said["plugins"]
    assert {*said["extras"].split(", "), *said["missing extras"].split(", ")} >= {"math", "nlg", "openai", "quant"}
    assert said["cache of datasets"] == "~/cache of mine"
    assert "secret" not in text
    assert str(Path.home()) not in text
    assert platform.node() not in said["system"] or len(platform.node()) < 4
    assert getpass.getuser() == "root" or getpass.getuser() not in text


def test_a_torch_that_does_not_load_is_reported_without_the_home_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(f"{Path.home()}/env/libtorch.so: cannot open shared object file")

    monkeypatch.setattr("swiftplug.cli.version.loading_libraries", fail)
    version(verbose=True)
    said = facts(capsys.readouterr().out)
    assert said["torch"].endswith(", which fails: ~/env/libtorch.so: cannot open shared object file")
