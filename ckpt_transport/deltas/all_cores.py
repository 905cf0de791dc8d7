"""Parts of one work are done by all cores, which take them in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ckpt_transport.memory import usable_cores

Given = TypeVar("Given")
Made = TypeVar("Made")


def by_all_cores(work: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
    """What ``work`` makes of each, in their order."""
    cores = min(usable_cores(), len(given))
    if cores < 2:
        return list(map(work, given))
    with ThreadPoolExecutor(cores, "ckpt-transport-deltas") as workers:
        return list(workers.map(work, given))
