"""How the threads that share a matrix product wait for each other."""

import os


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep at a barrier, not spin; call it before torch is imported.

    Spinning saves microseconds where every thread has a core to itself. Where another process wants one of the cores, a
    thread spins away its time slice while the one it waits for does not run: on two busy cores, a small model's steps
    took fifteen times as long. What the user's environment says (`OMP_WAIT_POLICY`) stays as it is.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
