"""Keeps glibc from handing memory back to the kernel at every step of a training run."""

import ctypes
import os
import platform
from pathlib import Path

# The names of these in <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1
_OTHER_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never shrink it; call it before torch is imported.

    By default glibc maps each block over 32 MiB anew and unmaps it when it is freed, so that every activation and every
    gradient of every step is paid for again in page faults: about a quarter of a training step on a CPU.

    Nothing is done where glibc is not the allocator, or where the user has set it up (`MALLOC_*`, `GLIBC_TUNABLES`).

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or _is_set_up() or _is_replaced():
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))


def _is_set_up() -> bool:
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )


def _is_replaced() -> bool:
    libraries = Path("/proc/self/maps").read_text()
    return any(name in libraries for name in _OTHER_ALLOCATORS)
