"""Maxima and casts on the CPU, on as many cores as torch may use.

torch spreads one operation over its own threads, which wait for each other by spinning. Here matrices are cut into
stretches that stay in a cache, and each thread takes the next one: on a busy machine nobody waits for a slow one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from ckpt_transport_fp8.bands import stretches
from ckpt_transport_fp8.part import Part, Run

SEARCHED_ELEMENTS = 1 << 20
CAST_ELEMENTS = 256 << 10
MAGNITUDE = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
"""Integers whose order, without the sign bit, is that of the magnitudes; infinity and NaN come last."""


def largest(parts: Iterable[Part], tensors: Sequence[torch.Tensor], found: torch.Tensor) -> None:
    """Find the largest magnitude in each group of each part; exact, and infinity or NaN where a group has one.

    Args:
        parts: of bfloat16, float16 or float32.
        tensors: of the version, those of the parts on the CPU.
        found: for the values of all groups, float32, on the CPU.
    """
    searches = [(part, _Maxima(part.source(tensors), *part.group)) for part in parts]
    run(step for _, maxima in searches for step in maxima.steps())
    for part, maxima in searches:
        part.of_groups(found).copy_(maxima.result())


class _Maxima:
    def __init__(self, matrix: torch.Tensor, high: int, wide: int) -> None:
        self._raw: np.ndarray[Any, Any] = matrix.view(MAGNITUDE[matrix.dtype]).numpy()
        self._dtype, self._high, self._wide = matrix.dtype, high, wide
        rows, columns = matrix.shape
        self._across = range(0, columns, wide)
        self._partial: list[tuple[int, np.ndarray[Any, Any]]] = []
        self._down = -(-rows // high)

    def steps(self) -> list[Callable[[], None]]:
        rows, columns = self._raw.shape
        cut = stretches(0, rows, self._high, SEARCHED_ELEMENTS // columns)
        return [partial(self._search, first, last) for first, last in cut]

    def _search(self, first: int, last: int) -> None:
        columns = self._raw.shape[1]
        magnitudes = self._raw[first:last] & np.iinfo(self._raw.dtype).max
        by_column = magnitudes.reshape(-1, min(self._high, last - first), columns).max(axis=1)
        if len(self._across) == 1:
            by_group = by_column.max(axis=1, keepdims=True)
        else:
            by_group = np.maximum.reduceat(by_column, self._across, axis=1)
        self._partial.append((first // self._high, by_group))

    def result(self) -> torch.Tensor:
        whole = np.zeros((self._down, len(self._across)), dtype=self._raw.dtype)
        for band, part in self._partial:
            np.maximum(whole[band : band + len(part)], part, out=whole[band : band + len(part)])
        return torch.from_numpy(whole).view(self._dtype).to(torch.float32)


def cast(
    part: Part, source: torch.Tensor, factors: torch.Tensor, runs: Iterable[Run], slot: torch.Tensor
) -> list[Callable[[], None]]:
    """The steps that put ``runs`` of a part into ``slot``; for :func:`run`."""
    steps: list[Callable[[], None]] = []
    high, size = part.group[0], part.dtype.itemsize
    own = None if part.first_group is None else part.of_groups(factors)
    for run in runs:
        width = run.columns.stop - run.columns.start
        for first, last in stretches(run.rows.start, run.rows.stop, high, CAST_ELEMENTS // width):
            start = run.start + (first - run.rows.start) * width * size
            target = slot[start : start + (last - first) * width * size].view(part.dtype).view(last - first, width)
            rows = None if own is None else own[first // high : -(-last // high)]
            steps.append(partial(_cast, source[first:last, run.columns], rows, part.group[1], run.columns, target))
    return steps


def _cast(source: torch.Tensor, factors: torch.Tensor | None, wide: int, columns: slice, target: torch.Tensor) -> None:
    elements = source.to(torch.float32, copy=True)
    if factors is not None:
        if factors.shape[1] > 1:
            factors = factors.repeat_interleave(wide, dim=1)[:, columns]
        elements.view(len(factors), -1, elements.shape[1]).mul_(factors.unsqueeze(1))
    target.copy_(elements)


def run(steps: Iterable[Callable[[], None]]) -> None:
    """Do all ``steps``, in any order, on all cores; when one raises, so does this, and no step runs any more."""
    waiting = deque(steps)
    pool, count = _threads()
    running = [pool.submit(_work, waiting) for _ in range(min(count, len(waiting)))]
    wait(running, return_when=FIRST_EXCEPTION)
    waiting.clear()
    wait(running)
    for future in running:
        future.result()


def _work(waiting: deque[Callable[[], None]]) -> None:
    while True:
        try:
            step = waiting.popleft()
        except IndexError:
            return
        step()


@cache
def _threads() -> tuple[ThreadPoolExecutor, int]:
    """Threads in each of which torch uses one core."""
    count = torch.get_num_threads()
    together = threading.Barrier(count)
    pool = ThreadPoolExecutor(count, "quantize")
    for started in [pool.submit(_use_one_core, together) for _ in range(count)]:
        started.result()
    again = threading.Thread(target=torch.set_num_threads, args=(count,))
    again.start()
    again.join()
    return pool, count


def _use_one_core(together: threading.Barrier) -> None:
    """What is set in a thread counts there; it is also what new threads begin with, so that is set back afterwards."""
    together.wait()
    torch.get_num_threads()
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_threads.cache_clear)
