"""Threads that sleep at barriers, unless the user wants otherwise."""

import os

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
