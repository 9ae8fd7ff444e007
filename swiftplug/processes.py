"""What holds in every process that a command starts: none outlives it, its death is explained, libraries are quiet."""

import os
import signal
import sys
import threading
import time
import warnings


def end_with_parent(parent: int) -> None:
    """End this process when its parent has ended, even if that was killed; call it when this one has just started.

    Args:
        parent: The process id of the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if os.name == "posix":  # elsewhere a process keeps the id of a parent that has ended
        threading.Thread(target=watch, daemon=True).start()


def num_processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_death(code: int) -> str:
    """What ended a process, by its exit code, which is negative after a signal.

    Example:
        >>> describe_death(-11), describe_death(3)
        ('was killed by SIGSEGV', 'ended with exit code 3')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    number = -code
    name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
    memory = " (as the system does when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{memory}"


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
