"""Summaries come from source text: every module here fails when it is imported."""

from pathlib import Path
from typing import Any

import pytest

from swiftplug.plugin.registry.finder import find_installed
from swiftplug.plugin.registry.summaries import summary_of

SOURCE = '''"""The module."""
from .inner import Deep as Renamed
from . import inner
raise RuntimeError("imported")


class A:
    """What A does.

    And more of it.
    """


async def coroutine():
    """A coroutine."""


def bare(): ...


def empty():
    """"""


class Commented:  # noqa: D101
    'single'


class Outer:
    def method(self):
        """Not of the class."""


def wide(
    first, *, second: dict = {"a": 1},
) -> None:
    r"""
    Wide \\alpha."""


made = A()

pair = (bare, None)
"""A pair,
on two lines."""

typed: int = 3
"""Typed."""
'''


@pytest.mark.parametrize(
    ("name", "summary"),
    [
        ("A", "What A does."),
        ("A.method", "What A does."),
        ("coroutine", "A coroutine."),
        ("made", "What A does."),
        ("pair", "A pair,"),
        ("typed", "Typed."),
        ("Renamed", "Deep."),
        ("bare", "The module."),
        ("empty", "The module."),
        ("Commented", "single"),
        ("Outer", "The module."),
        ("wide", r"Wide \alpha."),
        ("nowhere", "The module."),
    ],
)
def test_first_line_of_the_documentation(install: Any, name: str, summary: str) -> None:
    files = {
        "pack/__init__.py": "raise RuntimeError",
        "pack/sub/__init__.py": "raise RuntimeError",
        "pack/sub/mod.py": SOURCE,
        "pack/sub/inner.py": "from ..other import Deep\nraise RuntimeError\n",
        "pack/other.py": 'class Deep:\n    """Deep."""\nraise RuntimeError\n',
    }
    install("pack", {"losses": {"x": f"pack.sub.mod:{name}"}}, files)
    (found,) = (it for it in find_installed() if it.distribution == "pack")
    assert found.summary == summary


@pytest.mark.parametrize("text", ["def f(: pass", "\x00", "def f(): ...", None])
def test_none_where_there_is_nothing_to_read(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "it.py"
    if text is not None:
        path.write_text(text)
    assert summary_of(f"{path}:f") is None


def test_modules_without_source() -> None:
    assert summary_of("math:sqrt") is None
    assert summary_of("no_such_package.at.all:f") is None
    assert summary_of("not an object!") is None


def test_circular_imports_end(install: Any) -> None:
    install(
        "ring",
        {"losses": {"x": "ring_a:f"}},
        {"ring_a.py": "from ring_b import f", "ring_b.py": "from ring_a import f"},
    )
    assert summary_of("ring_a:f") is None
