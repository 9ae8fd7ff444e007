"""Prepares this process before torch is imported, and starts several processes.

`swiftplug --help` imports this module too, so heavy imports are inside the functions.
"""

import os
import platform
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from swiftplug.errors import Interrupted, UserError

# As in <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1
_OTHER_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")


def stop_on_signals() -> None:
    """Let Ctrl-C and SIGTERM stop the command in order; a second one ends the process at once."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in a background job
            signal.signal(number, stop)


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
    # The threads of tokenizers do not survive in forked processes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if num_proc == 1 else "false")
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
    """Show on a terminal that this process is busy while it imports PyTorch and others, which may take seconds."""
    from rich.console import Console

    from swiftplug.runs.console import RunProgress

    console = Console(stderr=True, quiet=not (is_first() and sys.stderr.isatty()))
    with RunProgress(console) as progress, progress.start("loading libraries"):
        yield


def silence_libraries() -> None:
    """Hide advice and deprecation warnings of libraries that are not about the user's run."""
    import logging

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.warnoptions:
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings(
            "ignore", category=UserWarning, module=r"(torch|transformers|accelerate|peft|datasets)\b"
        )


def run_in_processes(nproc: int, arguments: Sequence[str]) -> int:
    """Run `swiftplug` with these arguments in `nproc` processes on this machine, as `torchrun --standalone` would.

    The `torchrun` command would add its own traceback to the error of a process.

    Returns:
        The exit code: 0, or that of the process that failed first.

    Raises:
        UserError: This process is one of several already.
    """
    if "LOCAL_RANK" in os.environ:
        raise UserError("--nproc: this process was started by a launcher already; leave --nproc out")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))

    import logging
    import uuid

    with loading_libraries():
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # the processes report by themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "swiftplug", *arguments)
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return first.exitcode if first.exitcode > 0 else 1
    except SignalException as error:  # the processes got it too, and the first of them has said what is saved
        return 128 + error.sigval
    return 0
