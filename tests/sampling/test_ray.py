"""`--executor ray`, on a Ray of this machine: what is killed is done again, and the bytes are those of one process."""

import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from swiftplug.config.load import load_sample_config
from swiftplug.errors import UserError
from swiftplug.sampling.run import sample as run_sample
from tests import forks
from tests.sampling.conftest import DICE, Command
from tests.sampling.test_workers import DRAW, ENGINES, FILES

pytest.importorskip("ray")


ACTOR, RAYLET, WORKER = "ray::MapWorker", "/raylet/raylet", "spawn_main"


def processes(pid: int, part: str) -> list[psutil.Process]:
    """The processes below a run whose command begins so; those of workers have a program as an argument."""
    found = []
    with suppress(psutil.Error):
        for each in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                words = each.cmdline() or [""]  # of one that has died
                if part in words[0] or (part == WORKER and any(part in word for word in words)):
                    found.append(each)
    return found


def test_whatever_is_killed_the_bytes_are_those_of_one_process(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    arguments = ["--dataset", str(questions(1000)), *DRAW, "--set", "engine.seconds=0.01"]
    assert sample(*arguments, "--output-dir", "whole").returncode == 0
    run = ["sample", "--plugin", str(DICE), *arguments, "--output-dir", "run", "--resume", "--executor", "ray"]
    drawn, killed = random.Random(0), list[str]()
    for victims in ((ACTOR, RAYLET), (WORKER,)):
        process = forks.start(tmp_path, *run)
        assert process.pid is not None
        for victim in victims:
            while process.is_alive() and not processes(process.pid, victim):
                time.sleep(0.1)
            process.join(drawn.uniform(0.2, 1))
            if process.is_alive() and (found := processes(process.pid, victim)):
                drawn.choice(found).kill()
                killed.append(victim)
        process.join(200)
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
    assert killed == [ACTOR, RAYLET, WORKER]
    for file in FILES:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_what_an_engine_refuses_is_one_line(questions: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "engines.py").write_text(ENGINES)
    arguments = ["sample", "--plugin", tmp_path / "engines.py", "--dataset", questions(2), "--model", "m"]
    done = forks.run(*arguments, "--engine", "refuses", "--executor", "ray", "--output-dir", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: no such model\n"


def refused(questions: Callable[..., Path], tmp_path: Path, **given: object) -> str:
    """The line that refuses a run on Ray."""
    asked = {"plugins.files": [str(DICE)], "engine": "dice", "orm": ["box"], "model": "m", "executor": "ray"}
    asked |= {"dataset": [str(questions(2))], "output_dir": str(tmp_path / "run"), **given}
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        run_sample(load_sample_config(None, asked, []).config)
    assert time.monotonic() - started < 60
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    return str(error.value)


def test_an_address_that_does_not_answer(questions: Callable[..., Path], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # nobody listens
        line = refused(questions, tmp_path, **{"ray.address": address})
    assert line == f"--ray-address: no Ray cluster answers at {address}: Connection refused"
    line = refused(questions, tmp_path, **{"ray.address": "cluster"})
    assert line == "--ray-address: found 'cluster', expected HOST:PORT, ray://HOST:PORT, or auto"


def test_ray_is_not_installed(questions: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftplug.sampling.on_ray.find_spec", lambda name: None)
    assert refused(questions, tmp_path) == "--executor: ray needs Ray; pip install 'swiftplug[ray]'"


def test_what_is_scored_already_needs_no_actor_that_scores(
    questions: Callable[..., Path], sample: Command, tmp_path: Path
) -> None:
    assert sample("--dataset", questions(5), *DRAW, "--output-dir", "drawn").returncode == 0
    given = ["--engine", "none", "--candidates-file", "drawn/candidates.jsonl"]
    for folder, more in (("one", []), ("ray", ["--executor", "ray"])):
        done = sample(*given, *more, "--output-dir", folder)
        assert done.returncode == 0, done.stderr
    for file in ("candidates.jsonl", "samples.jsonl"):
        assert (tmp_path / "ray" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
