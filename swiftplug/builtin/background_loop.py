"""An event loop in a thread of its own, for a caller that is not asynchronous."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from swiftplug.builtin.openai_server import cancel

Result = TypeVar("Result")


class BackgroundLoop:
    """Runs coroutines in a thread, so that requests go on while the caller scores and writes what has come."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon: a run that dies must not wait for a server.
        self._thread = threading.Thread(target=self._loop.run_forever, name="swiftplug-requests", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Begin a coroutine; cancelling what is returned cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what still runs, wait for its end, and end the thread."""
        self.start(_cancel_others()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    await cancel([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
