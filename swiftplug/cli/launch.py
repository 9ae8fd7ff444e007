"""`--nproc N`: the same command in several processes."""

import os
import sys
import uuid
from collections.abc import Sequence

from swiftplug.errors import UserError


def is_first() -> bool:
    """Whether this process speaks for all: it is alone, or the first of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def run_in_processes(nproc: int, arguments: Sequence[str]) -> int:
    """Run `swiftplug` with these arguments in `nproc` processes of this machine, as `torchrun --standalone` would.

    torchrun's own command would follow the error of a process with tracebacks of its own.

    Returns:
        The exit code: 0, or that of the process that failed first.

    Raises:
        UserError: This process is one of several already.
    """
    if "LOCAL_RANK" in os.environ:
        raise UserError("--nproc: a launcher runs this already; leave --nproc out")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))

    import logging  # `--help` should not wait for it

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
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
    return 0
