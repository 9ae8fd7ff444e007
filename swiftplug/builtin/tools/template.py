"""Leaves the tools to the chat template."""

from typing import Any


def template(tool_names: list[str], tool_descs: list[Any]) -> None:
    """No text: the chat template writes the tools, their calls and their results in its own way."""
