"""Text that several tools formats write alike."""

import json
from typing import Any


def as_text(value: Any) -> str:
    """A string as it is, anything else as JSON with its characters unescaped."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def named_list(tool_names: list[str], tool_descs: list[Any]) -> str:
    """`NAME: DESCRIPTION`, a line each."""
    return "\n".join(f"{name}: {as_text(desc)}" for name, desc in zip(tool_names, tool_descs, strict=True))
