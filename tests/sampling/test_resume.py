"""A killed run that is resumed ends in the bytes of one that was not killed, and shards joined are the whole."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests import forks
from tests.sampling.conftest import DICE, Command, lines

FILES = ("candidates.jsonl", "samples.jsonl", "report.html")
DRAW = ["--engine", "dice", "--orm", "box", "--prm", "halves", "--num-return-sequences", "3"]


def run_forked(folder: Path, arguments: list[str], killed_after: float | None = None) -> int | None:
    """Run `swiftplug sample` in a process of its own, and kill it after so many seconds; returns the exit code."""
    process = forks.start(folder, "sample", "--plugin", str(DICE), *arguments)
    process.join(killed_after)
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("part", range(4))
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(
    questions: Callable[..., Path], tmp_path: Path, part: int
) -> None:
    arguments = ["--dataset", str(questions(30)), *DRAW, "--set", "engine.seconds=0.01", "--model", "m"]
    run_forked(tmp_path, ["--help"])  # starts the server
    started = time.monotonic()
    assert run_forked(tmp_path, [*arguments, "--output-dir", "whole"]) == 0, (tmp_path / "output.txt").read_text()
    seconds = time.monotonic() - started
    drawn = random.Random(part)
    killed = 0
    for number in range(4):
        run = [*arguments, "--output-dir", f"killed-{number}", "--resume"]
        moments = [0, *sorted(drawn.uniform(0, seconds) for _ in range(4))]
        for before, moment in pairwise(moments):
            killed += run_forked(tmp_path, run, killed_after=moment - before) == -signal.SIGKILL
        assert run_forked(tmp_path, run) == 0, (tmp_path / "output.txt").read_text()
        for file in FILES:
            assert (tmp_path / f"killed-{number}" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert killed >= 12  # of 16: the others were done before


@pytest.mark.parametrize("count", [1, 2, 7, 23])
def test_shards_joined_are_the_whole(
    questions: Callable[..., Path], sample: Command, tmp_path: Path, count: int
) -> None:
    arguments = ["--dataset", questions(count), *DRAW, "--model", "m"]
    assert sample(*arguments, "--output-dir", "whole").returncode == 0
    for shard in range(3):
        done = sample(*arguments, "--output-dir", f"shard-{shard}", "--shard", f"{shard}/3")
        assert done.returncode == 0, done.stderr
    for file in ("candidates.jsonl", "samples.jsonl"):
        joined = b"".join((tmp_path / f"shard-{shard}" / file).read_bytes() for shard in range(3))
        assert joined == (tmp_path / "whole" / file).read_bytes()
    assert len(lines(tmp_path / "whole" / "candidates.jsonl")) == 3 * count


def test_a_corrected_scorer_scores_again_what_was_sampled(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    scorer = tmp_path / "scorer.py"
    text = (
        "from swiftplug.plugin import register_orm\n"
        "@register_orm('mine')\n"
        "def mine(infer_requests, ground_truths):\n"
        "    return [{} for _ in infer_requests]\n"
    )
    scorer.write_text(text.format("float('nan')"))
    arguments = ["--dataset", questions(5), "--engine", "dice", "--orm", "mine", "--model", "m", "--plugin", scorer]
    broken = sample(*arguments, "--output-dir", "run")
    assert broken.returncode == 2
    assert "nan" in broken.stderr
    scorer.write_text(text.format("0.75"))
    corrected = sample(*arguments, "--output-dir", "run", "--resume")
    assert corrected.returncode == 0, corrected.stderr
    candidates = lines(tmp_path / "run" / "candidates.jsonl")
    assert len(candidates) == 5 * 8
    assert {candidate["scores"]["mine"] for candidate in candidates} == {0.75}


def test_rows_that_failed_are_tried_again(questions: Callable[..., Path], sample: Command, tmp_path: Path) -> None:
    arguments = ["--dataset", questions(6), "--engine", "dice", "--orm", "box", "--model", "m"]
    assert sample(*arguments, "--output-dir", "whole").returncode == 0
    (tmp_path / "ill").touch()
    first = sample(*arguments, "--output-dir", "run")
    assert first.returncode == 0, first.stderr
    assert "1 row left out: HTTP 500 after 5 tries" in first.stdout
    assert "--resume" in first.stdout
    assert len(lines(tmp_path / "run" / "candidates.jsonl")) == 5 * 8
    (tmp_path / "ill").unlink()
    again = sample(*arguments, "--output-dir", "run", "--resume")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "candidates.jsonl").read_bytes() == (tmp_path / "whole/candidates.jsonl").read_bytes()


def test_what_a_scorer_failed_at_is_tried_again(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    arguments = ["--dataset", questions(6), "--engine", "dice", "--orm", "shy_box", "--model", "m"]
    assert sample(*arguments, "--output-dir", "whole").returncode == 0
    (tmp_path / "ill").touch()
    first = sample(*arguments, "--output-dir", "run")
    assert first.returncode == 0, first.stderr
    hidden = [it for it in lines(tmp_path / "run" / "candidates.jsonl") if "{1}" in it["messages"][-1]["content"]]
    assert hidden
    assert all(it["scores"] == {} and it["reasons"] == ["shy_box: timed out"] for it in hidden)
    (tmp_path / "ill").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    again = sample(*arguments, "--output-dir", "moved/", "--resume")
    assert again.returncode == 0, again.stderr
    for file in ("candidates.jsonl", "samples.jsonl"):
        assert (tmp_path / "moved" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_two_runs_in_one_folder_exclude_each_other(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    arguments = ["--dataset", str(questions(40)), *DRAW, "--set", "engine.seconds=0.2", "--model", "m"]
    command = [sys.executable, "-m", "swiftplug", "sample", "--plugin", str(DICE), *arguments, "--output-dir", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "run" / "ledger.sqlite").exists():
            time.sleep(0.05)
        second = sample(*arguments, "--output-dir", "run", "--resume")
        process.kill()
    assert second.returncode == 2
    assert "another process" in second.stderr


def test_a_scorer_that_took_too_long_may_be_given_more_time(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    arguments = ["--dataset", questions(3), "--engine", "dice", "--orm", "slow_box", "--model", "m"]
    late = sample(*arguments, "--output-dir", "run", "--set", "score_timeout=0.001")
    assert late.returncode == 2
    assert "score_timeout" in late.stderr
    again = sample(*arguments, "--output-dir", "run", "--resume", "--set", "score_timeout=60")
    assert again.returncode == 0, again.stderr
    assert sample(*arguments, "--output-dir", "whole").returncode == 0
    for file in ("candidates.jsonl", "samples.jsonl"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_runs_begun_at_once_in_one_folder_leave_one(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    arguments = ["--dataset", str(questions(40)), *DRAW, "--model", "m"]
    command = [sys.executable, "-m", "swiftplug", "sample", "--plugin", str(DICE), *arguments, "--output-dir", "run"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [run.communicate(timeout=100)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2, 2], errors
    assert all("another process" in it or "another run" in it for it in errors if it)
    assert sample(*arguments, "--output-dir", "whole").returncode == 0
    for file in ("candidates.jsonl", "samples.jsonl"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_run_in_progress_is_not_overwritten(questions: Callable[..., Path], sample: Command, tmp_path: Path) -> None:
    arguments = ["--dataset", str(questions(12)), *DRAW, "--set", "engine.seconds=0.3", "--model", "m"]
    command = [sys.executable, "-m", "swiftplug", "sample", "--plugin", str(DICE), *arguments, "--output-dir", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        while not (tmp_path / "run" / "run.json").exists():
            time.sleep(0.05)
        second = sample(*arguments, "--output-dir", "run", "--overwrite")
    assert second.returncode == 2
    assert "another process" in second.stderr
    assert process.returncode == 0
    assert len(lines(tmp_path / "run" / "candidates.jsonl")) == 3 * 12


def test_a_file_of_candidates_that_changed_is_named(sample: Command, tmp_path: Path) -> None:
    given = tmp_path / "given.jsonl"
    line = '{{"messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "{}"}}]}}\n'
    given.write_text(line.format(1))
    arguments = ["--engine", "none", "--candidates-file", "given.jsonl", "--output-dir", "run"]
    assert sample(*arguments).returncode == 0
    assert sample(*arguments, "--resume").returncode == 0
    given.write_text(line.format(1) + line.format(2))
    changed = sample(*arguments, "--resume")
    assert changed.returncode == 2
    assert "given.jsonl has changed" in changed.stderr


def test_a_model_that_a_plugin_builds_by_now_is_named(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    arguments = ["--dataset", questions(2), "--engine", "dice", "--orm", "box", "--model", "acme"]
    assert sample(*arguments, "--output-dir", "run").returncode == 0
    metadata = tmp_path / "acme-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[swiftplug.models]\nacme = swiftplug.builtin.models.tiny:tiny\n")
    changed = sample(*arguments, "--output-dir", "run", "--resume")
    assert changed.returncode == 2
    assert "model 'acme' of acme 1 has changed" in changed.stderr
