"""Score candidates that exist with `swiftplug sample --engine none`: seconds, and peak memory by the number of rows.

    python benchmarks/score_candidates.py [--rows 1250 25000] [--candidates 4]

The rows are the answers of GSM8K's training set, over and over, each with a wrong number in every second candidate.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parents[1] / "tests/data/gsm8k/train.jsonl"


class Measured(NamedTuple):
    """One run: seconds from command to exit, and its peak memory in MiB."""

    seconds: float
    peak: float


def write_candidates(path: Path, rows: int, candidates: int) -> None:
    """Write candidates of so many rows that differ."""
    chats = [json.loads(line)["messages"] for line in DATA.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for number, chat in zip(range(rows), itertools.cycle(chats), strict=False):
            prompt = [*chat[:-1][:-1], {"role": "user", "content": f"{number}. {chat[-2]['content']}"}]
            answer = chat[-1]["content"]
            for index in range(candidates):
                text = answer if index % 2 == 0 else f"{answer}7"
                line = {"messages": [*prompt, {"role": "assistant", "content": text}], "reference": answer}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def measure(rows: int, candidates: int) -> Measured:
    """Score them, in a folder that is removed behind it."""
    with tempfile.TemporaryDirectory() as folder:
        write_candidates(Path(folder) / "candidates.jsonl", rows, candidates)
        command = [sys.executable, "-m", "swiftplug", "sample", "--engine", "none", "--orm", "gsm8k"]
        command += ["--candidates-file", "candidates.jsonl", "--output-dir", "run"]
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        if status:
            raise SystemExit(f"swiftplug ended with {status}")
        return Measured(seconds, usage.ru_maxrss / 1024)


def main() -> None:
    """Measure each number of rows in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1250, 25000])
    parser.add_argument("--candidates", type=int, default=4)
    arguments = parser.parse_args()
    print(f"{'rows':>8}{'candidates':>12}{'seconds':>9}{'peak MiB':>10}")
    for rows in arguments.rows:
        measured = measure(rows, arguments.candidates)
        print(f"{rows:8,}{rows * arguments.candidates:12,}{measured.seconds:9.1f}{measured.peak:10.0f}", flush=True)


if __name__ == "__main__":
    main()
