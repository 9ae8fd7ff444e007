"""What a run shows of its activities: live lines on a terminal, whole lines elsewhere."""

import io
import re
import time
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from swiftplug.config.load import load_sample_config
from swiftplug.runs import console as run_console
from swiftplug.runs.console import RunProgress, print_plan
from swiftplug.sampling.console import print_results
from swiftplug.sampling.run import sample
from swiftplug.sampling.statistics import Statistics


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_FIRST_LINE": 0.05, "_NEXT_LINE": 0.2, "_TICK": 0.01}.items():
        monkeypatch.setattr(run_console, name, seconds)


def printed(seconds: float, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, _environ={"TERM": "xterm"})
    with RunProgress(console) as progress, progress.start("sampling", "row", 8) as activity:
        activity.advance(2, candidate=16)
        time.sleep(seconds)
    return file.getvalue()


def test_elsewhere_whole_lines_tell_what_takes_long() -> None:
    assert printed(0.0) == ""
    text = printed(0.4)
    assert text.endswith("\n") and "\x1b" not in text and "\r" not in text
    first, second, *_ = text.splitlines()
    assert first == "sampling"
    pace = r"0s elapsed, \ds left, [\d.]+ rows/s, [\d.]+ candidates/s"
    assert re.fullmatch(rf"sampling: 2/8 rows, {pace}", second)


def test_on_a_terminal_a_live_line_names_both_times() -> None:
    text = printed(0.2, terminal=True)
    assert re.search(r"2/8 rows  0s elapsed  \ds left  [\d.]+ rows/s  [\d.]+ candidates/s", text)
    end = text.rpartition("candidates/s")[2]
    assert "\x1b[2K" in end and "\x1b[?25h" in end  # the line is erased, and the cursor back


@pytest.mark.parametrize("width", [30, 60, 80, 120])
@pytest.mark.parametrize("doing", ["training", "encoding 数据/问题和答案的文件夹/👋 [bold]很长的名字.jsonl"])
def test_no_live_line_is_wider_than_the_terminal(width: int, doing: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})
    progress = RunProgress(console)
    progress.start(doing, "step", 12_000).advance(1_234, token=10**7)
    progress.start("generating answers", "batch", 12)
    with console.capture() as capture:
        console.print(progress._render())
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in capture.get().splitlines()]
    assert len(lines) == 2 and all(cell_len(line) <= width for line in lines)
    assert "1,234/12,000 steps" in lines[0] or width < 60


def test_a_dumb_terminal_gets_whole_lines() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, _environ={"TERM": "dumb"})
    with RunProgress(console) as progress, progress.start("loading"):
        time.sleep(0.15)
    assert file.getvalue() == "loading\n"


def test_a_dry_run_names_the_model_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"model": "tiny", "dataset": ["arithmetic#1"], "output_dir": str(tmp_path / "run")}
    sample(load_sample_config(None, given, []).config, dry_run=True)
    out = capsys.readouterr().out
    assert len(re.findall(r"^model ", out, re.MULTILINE)) == 1
    assert re.search(r"^model +tiny +\(swiftplug ", out, re.MULTILINE)


def test_a_plan_breaks_no_value_into_two_lines() -> None:
    file = io.StringIO()
    print_plan(Console(file=file, width=40), [("model", "m"), ("run folder", "a/" * 60)], "nothing was written")
    assert file.getvalue().splitlines() == [
        "model       m",
        f"run folder  {'a/' * 60}",
        "dry run: nothing was written",
    ]


def test_a_run_that_kept_nothing_names_no_rows_to_train_on() -> None:
    file = io.StringIO()
    print_results(Console(file=file, width=80), Path("a run"), Statistics(2).summary(), 0, 61.0)
    assert file.getvalue().splitlines() == [
        "finished in 1m01s: 0 of 0 candidates kept",
        "no rows to train on",
        "page with all candidates: a run/report.html",
    ]
