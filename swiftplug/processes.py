"""What holds between a process and those that it starts: none outlives it, and the death of one is explained."""

import os
import signal
import threading
import time


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
