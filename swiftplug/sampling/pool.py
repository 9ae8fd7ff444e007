"""Workers in processes of this machine, each with an engine on a device of its own.

A worker that dies is started again, and what it was at is done again. The ledger is the driver's: nothing is lost.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.formatting import format_count
from swiftplug.processes import describe_death, end_with_parent, num_processors, silence_libraries
from swiftplug.sampling.worker import Batch, Done, Worker, sendable

_MOST_DEATHS = 3
"""Times that a worker may die one after the other without finishing a batch."""

_SECONDS_TO_CLOSE = 10.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class WorkerPool:
    """An executor whose workers are processes of this machine; see `Executor`.

    Args:
        config: The run's config.
        environments: The variables of each worker, besides those of this process.
        generates: Whether they generate.
        scores: Whether they score.
    """

    def __init__(
        self, config: SampleConfig, environments: Sequence[Mapping[str, str]], *, generates: bool, scores: bool
    ) -> None:
        task = config, generates, scores
        self._workers = [_Process(index, task, environment) for index, environment in enumerate(environments)]

    def open(self) -> None:
        """Start all workers, and wait until each has loaded its model.

        Raises:
            UserError: One cannot load it, or dies again and again.
        """
        for worker in self._workers:
            worker.start()
        while starting := [worker for worker in self._workers if not worker.is_ready]:
            for _ in _receive(starting):
                pass

    def run(self, batches: Iterator[Batch | Done]) -> Iterator[Done]:
        """Give each worker a batch, and another one when it is done; see `Executor.run`."""
        while True:
            for worker in self._workers:
                if worker.is_ready and worker.batch is None and (batch := next(batches, None)) is not None:
                    worker.give(batch)
            busy = [worker for worker in self._workers if worker.batch is not None]
            if not busy:
                return
            yield from _receive(busy)

    def close(self) -> None:
        """End the workers: idle ones close their engines, those that are at something are killed."""
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.end()


class _Process:
    """A worker's process.

    Attributes:
        is_ready: Whether it has loaded its model.
        batch: What it is at; None if that is nothing.
    """

    def __init__(self, index: int, task: tuple[SampleConfig, bool, bool], environment: Mapping[str, str]) -> None:
        self._index, self._task, self._environment = index, task, environment
        self._deaths = 0
        self._process: BaseProcess | None = None
        self._is_idle = False
        self.batch: Batch | Done | None = None

    def start(self) -> None:
        """Start it."""
        context = multiprocessing.get_context("spawn")  # a fork would share the state of threads and devices
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid(), *self._task), daemon=True)
        self.is_ready = False
        with _variables(self._environment):
            self._process.start()
        theirs.close()  # so that its death ends the connection

    def give(self, batch: Batch | Done) -> None:
        """Give it a batch to finish."""
        self.batch = batch
        with suppress(OSError):  # it has died, which `receive` will find
            self.connection.send(batch)

    def receive(self) -> Iterator[Done]:
        """What it has sent: that it is ready, or what it has done. One that has died is started again.

        Raises:
            UserError: It has died too often, or cannot load its model.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self._restart()
            return
        if isinstance(message, Exception):
            raise message
        if not self.is_ready:
            self.is_ready = True
            if self.batch is not None:
                self.give(self.batch)
        else:
            self._deaths, self.batch = 0, None
            yield message

    def _restart(self) -> None:
        assert self._process is not None
        self._process.join()
        self._deaths += 1
        died = f"worker {self._index} {describe_death(self._process.exitcode or 0)}"
        if self._process.exitcode == 2:  # a scorer that nothing could interrupt; it has said so
            raise UserError(f"{died}, so the run was stopped; what was sampled is kept: continue with --resume")
        if self._deaths == _MOST_DEATHS:
            when = "while it worked on one batch" if self.is_ready else "while it started"
            raise UserError(
                f"{died} {when}, {_MOST_DEATHS} times one after the other; what was sampled is kept: continue with "
                "--resume, perhaps with fewer workers"
            )
        self.start()

    def restart_if_dead(self) -> None:
        """Start it again if it has died and left a process of its own, which still holds the connection."""
        if self._process is not None and self._process.exitcode is not None and not self.connection.poll():
            self._restart()

    def dismiss(self) -> None:
        """Let it close its engine, if it is at nothing; the connection ends either way."""
        if self._process is not None:
            self._is_idle = self.is_ready and self.batch is None
            self.connection.close()

    def end(self) -> None:
        """End it."""
        if self._process is not None and self._process.pid is not None:
            self._process.join(_SECONDS_TO_CLOSE if self._is_idle else 0)
            self._process.kill()
            self._process.join()


def _receive(workers: list[_Process]) -> Iterator[Done]:
    """Wait for any of some workers, and give what they have done."""
    by_connection = {worker.connection: worker for worker in workers}
    for connection in wait(list(by_connection), timeout=1):
        assert isinstance(connection, Connection)
        yield from by_connection[connection].receive()
    for worker in workers:
        worker.restart_if_dead()


def _serve(connection: Connection, parent: int, config: SampleConfig, generates: bool, scores: bool) -> None:
    """The life of a worker: load the model, say so, and finish batches until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the one that started this ends it
    end_with_parent(parent)
    multiprocessing.current_process().daemon = False  # plugins may start processes of their own, as vLLM does
    if "TRANSFORMERS_NO_ADVISORY_WARNINGS" in os.environ:  # as in the process that started it, without --debug
        silence_libraries()
    try:
        worker = Worker(config)
        if generates:
            worker.open()
    except Exception as error:
        connection.send(sendable(error))
        return
    connection.send("ready")
    with closing(worker) if generates else nullcontext(), suppress(EOFError, OSError):
        while True:
            connection.send(worker.finish(connection.recv(), scores=scores))


def check_devices(config: SampleConfig) -> None:
    """Refuse more workers than this machine has devices: GPUs or, without any, processors.

    Raises:
        UserError: There are too few.
    """
    gpus = _gpus()
    devices, noun = (len(gpus), "GPU") if gpus else (num_processors(), "processor")
    if config.workers > devices:
        raise UserError(
            f"{config.where('workers')}: found {config.workers}, but this machine has {format_count(devices, noun)}; "
            f"expected at most {devices}"
        )


def _gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    named = [name for name in os.environ.get(_VISIBLE, "").split(",") if name]
    count = torch.cuda.device_count()
    return (named or [str(index) for index in range(count)])[:count]


def environments(number: int) -> list[dict[str, str]]:
    """The variables of so many workers: a GPU, a share of the processors, for memory what `keep_freed_memory` sets."""
    threads = {"OMP_NUM_THREADS": str(max(1, num_processors() // number))}
    memory = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
    gpus = [{_VISIBLE: gpu} for gpu in _gpus()] or [{}] * number
    return [{**threads, **memory, **os.environ, **gpu} for gpu in gpus[:number]]


@contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    """Have these variables in the environment, which processes inherit that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
