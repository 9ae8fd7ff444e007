"""Chunks of rows, encoded by several processes and given back in order."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from swiftplug.errors import UserError

CHUNK = 256
CHUNKS_AHEAD = 2  # a process, so that a source of any size is read no faster than it is encoded

Row = TypeVar("Row")
Encoded = TypeVar("Encoded")


def map_chunks(function: Callable[[list[Row]], Encoded], rows: Iterator[Row], num_proc: int) -> Iterator[Encoded]:
    """Apply a function to chunks of rows.

    Args:
        function: Runs in other processes if there are several. They are forked where the system can, so that it need
            not be picklable (plugins from a file are not).
        rows: Are read as they are needed, and never held all at once.
        num_proc: Processes. One is this one.

    Yields:
        What the function returns, in the order of the rows.

    Raises:
        UserError: A process died.
    """
    chunks = iter(lambda: list(islice(rows, CHUNK)), [])
    if num_proc == 1:
        yield from map(function, chunks)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(num_proc, multiprocessing.get_context(method), _start_worker, (function,))
    with pool:
        pending: deque[Any] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_work, chunk))
                if len(pending) > CHUNKS_AHEAD * num_proc:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(f"data.num_proc: one of {num_proc} processes died, perhaps for lack of memory") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_function: Callable[[list[Any]], Any]


def _start_worker(function: Callable[[list[Any]], Any]) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism; threads do not survive a fork


def _work(chunk: list[Any]) -> Any:
    return _function(chunk)
