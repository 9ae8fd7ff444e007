"""`--executor ray`: engines and scorers on actors of Ray Data, of a cluster or of a Ray that is started here.

Each actor has a process of `WorkerPool`, in whose main thread plugins run as they do without Ray. Batches go through
the actors of engines and then through those of scorers; how many are under way, Ray Data decides. What dies is started
again by Ray, and the batches that it was at are done again. The ledger stays with the driver.
"""

import logging
import math
import os
import pickle
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.formatting import format_number
from swiftplug.plugin.registry.errors import one_line
from swiftplug.runs.time_limit import call_within
from swiftplug.sampling.pool import WorkerPool
from swiftplug.sampling.worker import Batch, Done

if TYPE_CHECKING:
    import pyarrow as pa

_SECONDS_TO_REACH, _SECONDS_TO_JOIN, _SECONDS_TO_START = 5.0, 15.0, 120.0
_WINDOW = 4096  # batches (of `prompts_at_once` rows each) of one dataset of Ray's, for each of which actors start again


def check_ray(config: SampleConfig) -> None:
    """Refuse a run on Ray where Ray is not installed, or where nothing listens at the cluster's address.

    Raises:
        UserError: The run cannot be on Ray.
    """
    where, address = config.where("ray", "address"), config.ray.address
    if find_spec("ray") is None:
        raise UserError(f"{config.where('executor')}: ray needs Ray; pip install 'swiftplug[ray]'")
    if address in (None, "auto"):
        return
    parsed = re.fullmatch(r"(?:ray://)?([^:/]+|\[[^]]+\]):(\d{1,5})", str(address))
    if not parsed:
        raise UserError(f"{where}: found {address!r}, expected HOST:PORT, ray://HOST:PORT, or auto")
    try:
        socket.create_connection((parsed[1].strip("[]"), int(parsed[2])), timeout=_SECONDS_TO_REACH).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: no Ray cluster answers at {address}: {why}") from None


class RayPool:
    """An executor on a Ray cluster; see `Executor`.

    Args:
        config: The run's config.
        generates: Whether the run generates, and does not only score.
    """

    def __init__(self, config: SampleConfig, *, generates: bool) -> None:
        self._config, self._generates = config, generates
        self._scores = bool(config.orm or config.prm) or not generates

    def open(self) -> None:
        """Join the cluster, or start Ray here.

        Raises:
            UserError: That fails, or the cluster has less than the run asks for.
        """
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}.items():
            os.environ.setdefault(name, value)  # Ray reads them when it is imported
        import ray

        options, asked = self._config.ray, self._asked_for()
        local = {"address": "local", "num_cpus": math.ceil(asked["CPU"]) or 1, "include_dashboard": False}
        place = {"address": options.address} if options.address else local
        join = partial(ray.init, **place, log_to_driver=False, logging_level=logging.ERROR)
        where = self._config.where("ray", "address")
        seconds = _SECONDS_TO_JOIN if options.address else _SECONDS_TO_START
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            with _without_native_logs():
                call_within(seconds, join, f"{where}: Ray did not answer within {seconds:g} s")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"{where}: {one_line(error)}") from error
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's would end the run without a word
        there = ray.cluster_resources()
        for name, amount in asked.items():
            if amount > there.get(name, 0):
                raise UserError(
                    f"{self._config.where('workers')}: the run asks for {format_number(amount)} {name} in all, and the "
                    f"Ray cluster has {format_number(there.get(name, 0))}"
                )

    def _asked_for(self) -> dict[str, float]:
        """The resources of all actors together."""
        options, engines = self._config.ray, self._config.workers if self._generates else 0
        scorers = options.scorers if self._scores else 0
        return {
            "CPU": engines * options.num_cpus + scorers * options.scorer_num_cpus,
            "GPU": engines * options.num_gpus + scorers * options.scorer_num_gpus,
        }

    def run(self, batches: Iterator[Batch]) -> Iterator[Done]:
        """Answer and score batches; see `Executor.run`."""
        import ray
        from ray.exceptions import RayError

        _be_quiet()
        options, config = self._config.ray, self._config
        stages = (
            ("generate", self._generates, config.workers, options.num_cpus, options.num_gpus),
            ("score", self._scores, options.scorers, options.scorer_num_cpus, options.scorer_num_gpus),
        )
        while window := list(islice(batches, _WINDOW)):
            data: Any = ray.data.from_arrow([_table(batch) for batch in window])
            for part, _, actors, cpus, gpus in filter(itemgetter(1), stages):
                data = data.map_batches(
                    _Actor,
                    fn_constructor_args=(config, str(Path.cwd()), part),
                    compute=ray.data.ActorPoolStrategy(size=actors),
                    num_cpus=cpus,
                    num_gpus=gpus or None,
                    batch_size=1,
                    batch_format="pyarrow",
                )
            try:
                for row in data.iter_rows():
                    yield pickle.loads(row["work"])
            except RayError as error:
                said = str(error).strip().partition("\n")[0].rstrip(".")
                raise UserError(f"Ray gave up: {said}; what was sampled is kept: continue with --resume") from error

    def close(self) -> None:
        """Leave the cluster, or end the Ray that was started here."""
        import ray

        with suppress(Exception):  # a Ray that has died
            ray.shutdown()


class _Actor:
    """An engine, or the scorers, on an actor.

    Args:
        config: The run's config.
        folder: The folder of the driver, to which the paths in the config are relative.
        part: `generate` or `score`.
    """

    def __init__(self, config: SampleConfig, folder: str, part: str) -> None:
        self._error: Exception | None = None  # given with the first batch: an actor that fails is started again
        try:
            os.chdir(folder)
        except OSError as error:
            host = socket.gethostname()
            self._error = UserError(f"{folder}: {error.strerror} on {host}; the machines of a cluster must share it")
            return
        self._pool = WorkerPool(config, [{}], generates=part == "generate", scores=part == "score")
        try:
            self._pool.open()
        except Exception as error:  # whatever an engine raises
            self._error = error

    def __call__(self, table: "pa.Table") -> "pa.Table":
        work: Batch | Done = pickle.loads(table.column("work")[0].as_py())
        if self._error is not None:
            return _table(Done(work.rows, getattr(work, "answered", []), self._error))
        try:
            [done] = self._pool.run(iter([work]))
        except Exception as error:
            self._error = error
            return self(table)
        return _table(done)


def _table(work: Batch | Done) -> "pa.Table":
    import pyarrow as pa

    return pa.table({"work": pa.array([pickle.dumps(work)], pa.large_binary())})


def _be_quiet() -> None:
    """Have Ray Data neither draw bars nor log what it does."""
    import ray

    context: Any = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _without_native_logs() -> Iterator[None]:
    """Keep what Ray's C++ code logs from the terminal; Python's errors still reach it."""
    before, terminal = sys.stderr, os.dup(2)
    try:
        with Path(os.devnull).open("w") as null, os.fdopen(os.dup(terminal), "w") as errors:
            os.dup2(null.fileno(), 2)
            sys.stderr = errors
            yield
    finally:
        sys.stderr = before
        os.dup2(terminal, 2)
        os.close(terminal)
