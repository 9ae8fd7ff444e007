"""Prepares this process before torch is imported, and starts several processes.

`swiftplug --help` imports this module too, so heavy imports are inside the functions.
"""

import gc
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from swiftplug.errors import Interrupted, UserError
from swiftplug.processes import describe_death, end_with_parent, num_processors, silence_libraries

if TYPE_CHECKING:
    import subprocess

# As in <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1
_OTHER_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")

_LAUNCHER = "SWIFTPLUG_LAUNCHER"  # the variable with the process id of the command that started this process
_SECONDS_TO_STOP = 10

_importing = threading.Event()


def stop_on_signals() -> None:
    """Let Ctrl-C and SIGTERM stop the command in order, a second one at once, and so the end of its launcher."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if _importing.is_set():  # libraries swallow what is raised while they are imported; nothing has begun yet
            os.write(2, b"\r\x1b[Kerror: interrupted\n" if os.isatty(2) else b"error: interrupted\n")
            os._exit(128 + number)
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in a background job
            signal.signal(number, stop)
    if launcher := os.environ.pop(_LAUNCHER, None):
        end_with_parent(int(launcher))


def is_first() -> bool:
    """Whether this is the process that prints: the only one, or the first on its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def prepare_process(*, debug: bool, num_proc: int = 1, uses_torch: bool = True) -> None:
    """Set up this process; call it before torch and Transformers are imported. Environment variables that are set stay.

    Args:
        debug: Whether the libraries may warn.
        num_proc: Number of processes that will tokenize.
        uses_torch: Whether the command computes anything with torch.
    """
    if uses_torch:
        keep_freed_memory()
        wait_without_spinning()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if num_proc == 1 else "false")
    if hasattr(os, "register_at_fork"):
        # The threads of tokenizers do not survive a fork, whoever forks: a child that used them would wait forever.
        os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))
    if not debug:
        silence_libraries()


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never shrink it.

    By default glibc maps each block over 32 MiB anew and unmaps it when it is freed. The page faults of activations and
    gradients then take about a quarter of a training step on a CPU.

    Returns:
        Whether it was done: not if glibc is not the allocator, or the user has configured it.
    """
    import ctypes

    environment = os.environ
    configured = "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in environment
    )
    if platform.libc_ver()[0] != "glibc" or configured:
        return False
    libraries = Path("/proc/self/maps").read_text()
    if any(name in libraries for name in _OTHER_ALLOCATORS):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep at a barrier instead of spinning.

    Spinning saves microseconds if every thread has its own core. If another process uses one of the cores, a thread
    spins away the time slice that the thread it waits for needs: on two busy cores, a small model's steps took fifteen
    times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Show on a terminal that this process is busy while it imports PyTorch and others, which may take seconds.

    What is imported stays, so garbage collection leaves it alone: that saves a fifth of the time, and some later.
    """
    from rich.console import Console

    from swiftplug.runs.console import RunProgress

    console = Console(stderr=True, quiet=not (is_first() and sys.stderr.isatty()))
    is_new, collects = "torch" not in sys.modules, gc.isenabled()
    _importing.set()
    gc.disable()
    try:
        with RunProgress(console) as progress, progress.start("loading libraries"):
            yield
    finally:
        _importing.clear()
        if is_new:
            gc.freeze()
        if collects:
            gc.enable()


def run_in_processes(nproc: int, arguments: Sequence[str]) -> int:
    """Run `swiftplug` with these arguments in `nproc` processes on this machine; if one fails, the others end too.

    `torchrun` would end the others by SIGTERM, wait for them up to 30 s, and add its own traceback.

    Returns:
        The exit code: 0, or that of the process that failed first (128 and the number of the signal that killed it).

    Raises:
        UserError: This process is one of several already.
    """
    import socket
    import subprocess

    if "LOCAL_RANK" in os.environ:
        raise UserError("--nproc: this process was started by a launcher already; leave --nproc out")
    processes: list[subprocess.Popen[bytes]] = []
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # kept for the first process, which will listen
        port.bind(("127.0.0.1", 0))
        environment = {
            "OMP_NUM_THREADS": str(max(1, num_processors() // nproc)),
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port.getsockname()[1]),
            "WORLD_SIZE": str(nproc),
            "LOCAL_WORLD_SIZE": str(nproc),
            _LAUNCHER: str(os.getpid()),
        }
        try:
            processes.extend(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "swiftplug", *arguments],
                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    start_new_session=True,  # Ctrl-C reaches the launcher alone, which passes it on
                )
                for rank in range(nproc)
            )
            failed = _wait_for_failure(processes)
        except Interrupted as error:  # the first of the processes says what is saved
            for process in processes:
                process.send_signal(error.number)
            with suppress(subprocess.TimeoutExpired):
                for process in processes:
                    process.wait(_SECONDS_TO_STOP)
            return 128 + error.number
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if failed is None:
        return 0
    code = processes[failed].returncode
    if failed and code in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # the first has said what is saved
        code = 128 - code
    if code < 0:
        ended = f"process {failed} {describe_death(code)}, so the run was stopped"
        print(f"error: {ended}; what was saved is unharmed: continue with --resume", file=sys.stderr)
    return code if code > 0 else 128 - code


def _wait_for_failure(processes: Sequence["subprocess.Popen[bytes]"]) -> int | None:
    """The index of the first process that fails, as soon as it does; None if all end well."""
    while True:
        codes = [process.poll() for process in processes]
        # Others may have failed by now because the killed one is gone.
        if failed := sorted((code > 0, rank) for rank, code in enumerate(codes) if code):
            return failed[0][1]
        if None not in codes:
            return None
        time.sleep(0.05)
