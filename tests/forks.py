"""The `swiftplug` command in processes of their own, forked from a server that has imported what it needs."""

import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["swiftplug.cli.main", "swiftplug.sampling.run", "swiftplug.training.run"])

# What a forked process does: run the command in a folder, and end with its exit code.
RUN_COMMAND = """
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

import torch

from swiftplug.cli.main import main

torch.set_num_threads(1)
os.environ["SWIFTPLUG_CACHE"] = f"{folder}/cache"
os.chdir(folder)
sys.argv = ["swiftplug", *arguments]
with open("output.txt", "a", encoding="utf-8") as output, redirect_stdout(output), redirect_stderr(output):
    main()
"""


def start(folder: Path, *arguments: str) -> BaseProcess:
    """Start `swiftplug ARGUMENTS` in a folder, whose `output.txt` gets what it prints.

    It works from the first moment on: a process that is killed is killed at its work, not while it imports.
    """
    process = FORKS.Process(target=exec, args=(RUN_COMMAND, {"folder": str(folder), "arguments": list(arguments)}))
    process.start()
    return process
