"""Numbers, and commands that a shell reads as they were meant."""

import subprocess
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest

from swiftplug.formatting import (
    format_command,
    format_count,
    format_duration,
    format_number,
    format_percent,
    format_rate,
    shortest_ends,
)

WORDS = [
    "my run",
    "a[0]",
    "#3",
    "it's",
    '"q"',
    "数据/é.jsonl",
    "~/x",
    "$HOME",
    "a;b&c|d",
    "*",
    "\\",
    "!",
    "two  blanks",
    "l\nm",
]


NUMBERS: dict[Callable[..., str], dict[tuple[Any, ...], str]] = {
    format_count: {(1, "row"): "1 row", (0, "row"): "0 rows", (12345, "batch"): "12,345 batches"},
    format_percent: {
        (0,): "0%",
        (0.5,): "50%",
        (0.4312,): "43.1%",
        (0.00342,): "0.34%",
        (0.000012,): "<0.01%",
        (0.9996,): "99.96%",
        (0.999999,): ">99.99%",
        (1,): "100%",
    },
    format_duration: {(0.2,): "0s", (59.6,): "1m00s", (3599.7,): "1h00m", (90061,): "1d01h"},
    format_rate: {
        (5, 12, "step"): "0.42 steps/s",
        (123, 10, "candidate"): "12.3 candidates/s",
        (12345, 10, "token"): "1,234 tokens/s",
    },
    format_number: {(1234.0,): "1,234", (0.00012345,): "0.000123", (0.00142,): "0.00142", (-2.5,): "-2.5"},
}


def test_a_shell_reads_a_printed_command_back() -> None:
    command = format_command("train", *WORDS)
    assert command.startswith("swiftplug train ")
    for shell in ("sh", "bash"):
        script = f"swiftplug() {{ printf '%s\\0' \"$@\"; }}; {command}"
        done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.split("\0") == ["train", *WORDS, ""]


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [(function, arguments, text) for function, texts in NUMBERS.items() for arguments, text in texts.items()],
)
def test_numbers(function: Callable[..., str], arguments: tuple[Any, ...], expected: str) -> None:
    assert function(*arguments) == expected


@pytest.mark.parametrize(
    ("paths", "ends"),
    [
        ("a/x b/x", "a/x b/x"),
        ("/r/x/1 /r/y/1 /r/y/2", "x/1 y/1 2"),
        ("/x x", "/x x"),
        ("/r/x /r/x", "/r/x /r/x"),
        ("r/checkpoint-1 r s/checkpoint-1", "r/checkpoint-1 r s/checkpoint-1"),
        ("a/r/checkpoint-1 b/r/checkpoint-1 org/name", "a/r/checkpoint-1 b/r/checkpoint-1 name"),
    ],
)
def test_shortest_ends_tell_paths_apart(paths: str, ends: str) -> None:
    assert shortest_ends([*map(PurePosixPath, paths.split())]) == ends.split()
