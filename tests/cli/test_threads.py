"""Threads that sleep at barriers unless the user wants otherwise, and that no forked process waits for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swiftplug.cli.process import wait_without_spinning


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_the_users_environment_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == expected


FORKING = """
import os, sys
from swiftplug.cli.process import prepare_process
prepare_process(debug=False)
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.encode_batch(["a", "b"] * 100)
if os.fork() == 0:
    os._exit(len(tokenizer.encode_batch(["a", "b"])))
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks on this system")
def test_what_a_plugin_forks_can_tokenize(tiny_model_dir: Path) -> None:
    """As a dataset plugin does that maps its rows in several processes."""
    arguments = [sys.executable, "-c", FORKING, tiny_model_dir / "tokenizer.json"]
    assert subprocess.run(arguments, timeout=60, check=False).returncode == 2
