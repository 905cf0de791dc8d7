"""Spreads work over as many cores of the CPU as torch may use.

torch spreads one operation over its own threads, which wait for each other by spinning. Here work is cut into steps
whose data stays in a cache, and each thread takes the next step: on a busy machine nobody waits for a slow thread.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cache

import torch


def run_parallel(steps: Iterable[Callable[[], None]]) -> None:
    """Run all ``steps`` on all cores, in any order.

    When one raises, so does this; then no step runs any more.
    """
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
    """Start threads in each of which torch uses one core; return them and their number."""
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
    """Set torch's number of threads in this thread.

    New threads begin with the number that was set last, so that is set back afterwards.
    """
    together.wait()
    torch.get_num_threads()
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_threads.cache_clear)
