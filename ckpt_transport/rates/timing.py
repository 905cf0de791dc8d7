"""A probe repeats something small for tens of milliseconds; the fastest repetition is the link's rate."""

from __future__ import annotations

import time
from collections.abc import Callable

PROBE_SECONDS = 0.03
"""Repetitions begin for so long."""
FEWEST = 3
"""So many are made at least: the first one finds cold caches and page tables."""


def fastest(repetition: Callable[[], float]) -> float:
    """The least that a repetition says it took, in seconds.

    Whatever else the machine does makes some repetitions slower, and none faster.
    """
    end = time.monotonic() + PROBE_SECONDS
    found = [repetition() for _ in range(FEWEST)]
    while time.monotonic() < end:
        found.append(repetition())
    return min(found)


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
