"""The `swiftplug` command, or a script, in a process of its own, forked from a server that has imported what it needs.

Such a process starts in a hundredth of a second in place of the six that Transformers and PyTorch take to import. What
it shares with the others is what was imported, and the seed of Python's hashes.
"""

import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

PRELOADED = [
    *("swiftplug.cli.main", "swiftplug.sampling.run", "swiftplug.training.run"),
    # What a run imports late.
    *("matplotlib.backends.backend_agg", "peft", "transformers.models.llama.modeling_llama"),
]

# What a forked process does: run the command as if it were started by a shell, and end with its exit code.
RUN_COMMAND = """
import gc
import os
import runpy
import sys

import torch

from swiftplug.cli.main import main

gc.freeze()  # as in tests/conftest.py
torch.set_num_threads(1)
os.environ.clear()
os.environ.update(environment)
sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]  # as `python -m` does
os.chdir(folder)
for stream, path in ((sys.stdout, stdout), (sys.stderr, stderr)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream.fileno())
sys.argv = [script or "swiftplug", *arguments]
if script:
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name="__main__")
else:
    main()
"""


@cache
def context() -> ForkServerContext:
    """What starts processes by forking the server."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as environment:  # of the server, read when it imports
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.setenv("HF_HUB_OFFLINE", "1")
        forkserver.ensure_running()
    return forking


def start(
    folder: Path,
    *arguments: str,
    stdout: str = "output.txt",
    stderr: str = "output.txt",
    environment: Mapping[str, str] | None = None,
    script: str = "",
) -> BaseProcess:
    """Start `swiftplug ARGUMENTS`, or a Python script with them, in a folder, which gets what it prints in a file.

    It works from the first moment on: a process that is killed is killed at its work, not while it imports.

    Args:
        folder: Where it runs.
        arguments: Those of the command.
        stdout: The file for what it prints, relative to the folder.
        stderr: The file for its errors.
        environment: Variables besides those of this process.
        script: The script's path.
    """
    cache_dir = {"SWIFTPLUG_CACHE": f"{folder}/cache"}
    variables = {
        "folder": str(folder),
        "arguments": list(arguments),
        "script": script,
        "stdout": stdout,
        "stderr": stderr,
        "environment": {**os.environ, **(cache_dir if environment is None else environment)},
    }
    process: BaseProcess = context().Process(target=exec, args=(RUN_COMMAND, variables))
    process.start()
    return process


def run(
    *arguments: object, cwd: Path, timeout: float = 280, processes: int = 1, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run `swiftplug ARGUMENTS` in a folder to its end, as `subprocess.run` would.

    Several processes are started as `torchrun` would start them; the exit code is the highest of theirs.
    """
    line = [str(argument) for argument in arguments]
    with TemporaryDirectory() as place:
        stdout, stderr = Path(place, "stdout"), Path(place, "stderr")
        with socket.socket() as port:
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # kept for the first process, which will listen
            port.bind(("127.0.0.1", 0))
            started = [
                start(cwd, *line, stdout=str(stdout), stderr=str(stderr), environment={**environment, **own})
                for own in (of_processes(processes, port.getsockname()[1]) if processes > 1 else [{}])
            ]
            end = time.monotonic() + timeout
            for process in started:
                process.join(max(0, end - time.monotonic()))
                if process.exitcode:  # the others may wait for it
                    end = min(end, time.monotonic() + 20)
        if late := [process for process in started if process.is_alive()]:
            for process in late:
                process.kill()
                process.join()
            raise subprocess.TimeoutExpired(line, timeout, stdout.read_text(), stderr.read_text())
        code = max((process.exitcode or 0 for process in started), key=abs)
        return subprocess.CompletedProcess(line, code, stdout.read_text(), stderr.read_text())


def of_processes(count: int, port: int) -> list[dict[str, str]]:
    """The variables that tell each of several processes on this machine where the others are."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "CUDA_VISIBLE_DEVICES": ""}
    return [{**address, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
