"""`--nproc`: how its processes end, together and with one line that says why."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

# The plugin file is run before anything slow is imported: here it is what a process is doing when it dies.
PLUGIN = """
import os, pathlib, signal, time
orms = {"none": lambda completions, **columns: []}
rank = os.environ.get("LOCAL_RANK")
if rank is not None:
    pathlib.Path(f"pid-{rank}.partial").write_text(str(os.getpid()))
    pathlib.Path(f"pid-{rank}.partial").rename(f"pid-{rank}")
    while not (pathlib.Path("pid-0").exists() and pathlib.Path("pid-1").exists()):
        time.sleep(0.01)
"""
Launch = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    def start(then: str) -> "subprocess.Popen[str]":
        (tmp_path / "plugin.py").write_text(f"{PLUGIN}    {then}\n    time.sleep(100)\n")
        command = [
            sys.executable,
            "-m",
            "swiftplug",
            "train",
            "--model=tiny",
            "--dataset=d.jsonl",
            "--plugin=plugin.py",
        ]
        return subprocess.Popen(
            [*command, "--output-dir=r", "--nproc=2"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # pytest may run in background
        )

    return start


def pids(folder: Path) -> list[int]:
    files = [folder / f"pid-{rank}" for rank in range(2)]
    wait_until(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")  # nobody waits for it here


@pytest.mark.parametrize(("rank", "name"), [("0", "SIGKILL"), ("1", "SIGSEGV")])
def test_a_process_that_is_killed_is_named_and_ends_all(launch: Launch, tmp_path: Path, rank: str, name: str) -> None:
    process = launch(f"if rank == {rank!r}: os.kill(os.getpid(), signal.{name})")
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + getattr(signal, name)
    assert len(error.splitlines()) == 1
    assert error.startswith(f"error: process {rank} was killed by {name}")
    assert ("memory" in error) == (name == "SIGKILL")
    assert not any(map(is_running, pids(tmp_path)))


def test_an_error_of_one_process_is_printed_once_and_ends_all(launch: Launch, tmp_path: Path) -> None:
    process = launch("if rank == '1': raise ValueError('mine alone')")
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert len(error.splitlines()) == 1
    assert error.startswith("error (process 1): ")
    assert "mine alone" in error
    assert not any(map(is_running, pids(tmp_path)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_ends_all_with_one_line(launch: Launch, tmp_path: Path, number: signal.Signals) -> None:
    process = launch("pass")
    started = pids(tmp_path)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == "error: interrupted\n"
    assert process.returncode == 128 + number
    assert not any(map(is_running, started))


def test_no_process_outlives_a_command_that_is_killed(launch: Launch, tmp_path: Path) -> None:
    process = launch("pass")
    started = pids(tmp_path)
    process.kill()
    wait_until(lambda: not any(map(is_running, started)))
    assert process.communicate(timeout=60) == ("", "")


def refused(tmp_path: Path, rank: int, **environment: str) -> "subprocess.Popen[str]":
    """What torchrun starts: one of two processes, which finds no such dataset plugin file."""
    (tmp_path / "plugin.py").write_text("open('ran', 'w')\nraise ValueError('mine')")
    command = [sys.executable, "-m", "swiftplug", "train", "--model=tiny", "--dataset=d.jsonl", "--plugin=plugin.py"]
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return subprocess.Popen(
        [*command, "--output-dir=r"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **own, **environment},
    )


def test_the_report_of_torchrun_ends_with_our_line(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    process = refused(tmp_path, 0, TORCHELASTIC_ERROR_FILE=str(file))
    line = process.communicate(timeout=60)[1].rstrip()
    assert process.returncode == 2
    assert line.startswith("error: ")
    assert "mine" in line
    assert ProcessFailure(0, process.pid, 2, str(file)).message["extraInfo"]["py_callstack"] == line


def test_a_launcher_ends_the_others_without_a_word(tmp_path: Path) -> None:
    process = refused(tmp_path, 1)
    wait_until((tmp_path / "ran").exists)
    time.sleep(1)  # it waits for five seconds to be ended by the launcher, as the first says what is wrong
    process.terminate()
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == -signal.SIGTERM
