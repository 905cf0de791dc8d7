"""A process may keep as many threads busy as it has cores, and no more than memory can feed."""

from __future__ import annotations

import os

MOST = 16
"""More threads than this read memory no faster, and take turns at the interpreter's lock."""


def usable_cores() -> int:
    """The cores that the calling thread may run on, at most 16.

    It does not ask torch, which torchrun and many servers restrict to one thread by ``OMP_NUM_THREADS=1``.
    """
    return min(len(os.sched_getaffinity(0)), MOST)
