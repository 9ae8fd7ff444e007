"""Workers: whatever is killed, and however many there are, a run ends in the bytes of one process."""

import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from swiftplug.config.load import load_sample_config
from swiftplug.errors import UserError
from swiftplug.sampling.ledger import Ledger
from swiftplug.sampling.run import sample as run_sample
from tests import forks
from tests.sampling.conftest import DICE, Command

FILES = ("candidates.jsonl", "samples.jsonl", "report.html")
DRAW = ["--engine", "dice", "--orm", "box", "--prm", "halves", "--num-return-sequences", "3", "--model", "m"]


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes of the workers of a run."""
    try:
        return [each for each in psutil.Process(pid).children() if any("spawn_main" in it for it in each.cmdline())]
    except psutil.Error:
        return []


def test_whatever_is_killed_the_bytes_are_those_of_one_process(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    arguments = ["--dataset", str(questions(1000)), *DRAW, "--set", "engine.seconds=0.003"]
    assert sample(*arguments, "--output-dir", "whole").returncode == 0
    run = ["sample", "--plugin", str(DICE), *arguments, "--output-dir", "run", "--resume", "--workers", "2"]
    drawn, killed, drivers = random.Random(0), 0, 0
    for kills in (2, 2, None):
        process = forks.start(tmp_path, *run)
        assert process.pid is not None
        while process.is_alive() and (kills is None or kills > 0):
            process.join(drawn.uniform(0.5, 1.5))
            if kills is not None and len(workers := workers_of(process.pid)) == 2:
                drawn.choice(workers).kill()
                killed, kills = killed + 1, kills - 1
        if kills == 0 and process.is_alive():
            process.join(drawn.uniform(0, 1))
            left = workers_of(process.pid)
            process.kill()
            process.join()
            drivers += process.exitcode == -signal.SIGKILL
            _, alive = psutil.wait_procs(left, timeout=10)
            assert not alive  # no worker outlives its driver
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
    assert killed >= 3
    assert drivers >= 1
    for file in FILES:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


ENGINES = """
import multiprocessing
import os
import threading
import time

from swiftplug.plugin import Answered, Completion, Engine, UserError, register_engine


class Base(Engine):
    def prompts_at_once(self, sampling):
        return 1

    def generate(self, prompts):
        for prompt in prompts:
            yield Answered(prompt.id, [Completion("1", "stop")] * 8)


@register_engine("locked")
class Locked(Base):
    def __init__(self):
        self.lock = threading.Lock()  # cannot be pickled


@register_engine("dies")
class Dies(Base):
    def open(self, args, sampling):
        os.kill(os.getpid(), 9)


@register_engine("dies_later")
class DiesLater(Base):
    def generate(self, prompts):
        os._exit(3)


@register_engine("leaves_a_child")
class LeavesAChild(Base):
    def generate(self, prompts):
        if os.fork():
            os._exit(3)
        time.sleep(20)  # it holds what the worker held
        os._exit(0)


@register_engine("has_processes")
class HasProcesses(Base):
    def open(self, args, sampling):
        child = multiprocessing.get_context("fork").Process(target=os.getpid)
        child.start()
        child.join()

    def close(self):
        print(f"closed in {os.getpid()}", flush=True)


@register_engine("refuses")
class Refuses(Base):
    def open(self, args, sampling):
        raise UserError("no such model")


@register_engine("raises")
class Raises(Base):
    def generate(self, prompts):
        class Local(Exception):
            pass

        yield from super().generate(prompts)
        raise Local("the server is ill")


@register_engine("none_left")
class NoneLeft(Base):
    def generate(self, prompts):
        return iter(())
"""


@pytest.fixture
def run_engine(questions: Callable[..., Path], tmp_path: Path) -> Callable[..., None]:
    """Run four questions with one of these engines, in two workers."""
    file = tmp_path / "engines.py"
    file.write_text(ENGINES)
    given = {"model": "m", "dataset": [str(questions(4))], "workers": 2, "plugins.files": [str(file)]}

    def run(engine: str, *, folder: str = "run", resume: bool = False, **options: object) -> None:
        asked = {**given, "engine": engine, "output_dir": str(tmp_path / folder), **options}
        run_sample(load_sample_config(None, asked, []).config, resume=resume)

    return run


def test_an_engine_that_cannot_be_pickled(run_engine: Callable[..., None], tmp_path: Path) -> None:
    run_engine("locked")
    run_engine("locked", folder="one", workers=1)
    assert (tmp_path / "run/candidates.jsonl").read_bytes() == (tmp_path / "one/candidates.jsonl").read_bytes()


def test_workers_close_their_engines_which_may_start_processes(
    run_engine: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    run_engine("has_processes")
    assert len({*re.findall(r"closed in (\d+)", capfd.readouterr().out)}) == 2


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("dies", r"^worker \d was killed by SIGKILL .* while it started, 3 times one after the other"),
        ("dies_later", r"^worker \d ended with exit code 3 while it worked on one batch, 3 times"),
        ("leaves_a_child", r"^worker \d ended with exit code 3 while it worked on one batch, 3 times"),
        ("refuses", "(?m)^no such model$"),
        ("raises", r"(?m)^engine 'raises' of .*engines.py raised Local: the server is ill \(engines.py:\d+\)$"),
        ("none_left", r"(?m)^engine 'none_left' of .*engines.py returned no result for .*questions.jsonl:\d$"),
    ],
)
def test_what_ends_a_run(run_engine: Callable[..., None], tmp_path: Path, engine: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=message):
        run_engine(engine)
    assert time.monotonic() - started < 60
    assert not workers_of(psutil.Process().pid)
    if engine == "raises":  # what was answered before is kept
        with closing(Ledger(tmp_path / "run/ledger.sqlite")) as ledger:
            assert ledger.has_candidates()


def test_scoring_alone_is_shared_too(questions: Callable[..., Path], sample: Command, tmp_path: Path) -> None:
    assert sample("--dataset", questions(30), *DRAW, "--output-dir", "drawn").returncode == 0
    again = ["--engine", "none", "--candidates-file", "drawn/candidates.jsonl", "--orm", "box", "--prm", "halves"]
    for folder, workers in (("one", 1), ("two", 2)):
        done = sample(*again, "--output-dir", folder, "--workers", workers)
        assert done.returncode == 0, done.stderr
    for file in ("candidates.jsonl", "samples.jsonl"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_more_workers_than_devices(questions: Callable[..., Path], sample: Command) -> None:
    done = sample("--dataset", questions(1), *DRAW, "--workers", "999", "--output-dir", "run")
    assert done.returncode == 2
    assert "--workers: found 999, but this machine has" in done.stderr
    assert "expected at most" in done.stderr
