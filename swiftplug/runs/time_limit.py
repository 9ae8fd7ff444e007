"""A time limit for a plugin's code that runs in the main thread."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from swiftplug.errors import UserError

T = TypeVar("T")

_GRACE = 5.0
"""Seconds in which code must end after it was interrupted."""

_SIGNAL = signal.SIGVTALRM  # SIGALRM is what math-verify and the like use for limits of their own


class _OverdueError(BaseException):
    """Interrupts code that takes too long. It is no Exception, for which that code may have a handler and go on."""


def call_within(seconds: float, function: Callable[[], T], message: str) -> T:
    """Call a function in this thread, the main one, and end it if it takes longer than so many seconds.

    An exception interrupts it. If that does not end it, as in some libraries written in C, this process ends: with the
    message and exit code 2 or, if nothing in Python can run any more, with the place and exit code 1.

    Raises:
        UserError: The function took too long; `message` says so.
    """
    finished, deadline = threading.Event(), time.monotonic() + seconds
    is_interrupted = False

    def interrupt(*_: Any) -> None:
        nonlocal is_interrupted
        if not (is_interrupted or finished.is_set()) and time.monotonic() >= deadline:
            is_interrupted = True
            raise _OverdueError

    def watch() -> None:
        if not finished.wait(seconds):
            signal.pthread_kill(main_thread, _SIGNAL)
            if not finished.wait(_GRACE):
                print(f"error: {message}", file=sys.stderr, flush=True)
                os._exit(2)

    main_thread = threading.get_ident()
    watcher = threading.Thread(target=watch, name="swiftplug-time-limit", daemon=True)
    before = signal.getsignal(_SIGNAL)
    try:
        signal.signal(_SIGNAL, interrupt)
        # The watcher cannot run while a regular expression or a power of long numbers holds Python's lock; a timer can.
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
        faulthandler.dump_traceback_later(seconds + 2 * _GRACE, exit=True, file=2)
        watcher.start()
        try:
            result = function()
        finally:
            finished.set()
    except BaseException:
        if not is_interrupted:
            raise
    finally:  # nothing is raised here: an interrupt is raised once, and not after `finished`
        finished.set()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        faulthandler.cancel_dump_traceback_later()
        if watcher.ident:
            watcher.join()
        signal.signal(_SIGNAL, before)
    if is_interrupted:
        raise UserError(message)
    return result
