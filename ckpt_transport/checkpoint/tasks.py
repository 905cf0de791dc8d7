"""Tasks fill one pool; whoever waits for them is told of each, and none outlives the wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, as_completed, wait


def run(tasks: Iterable[Callable[[], int]], executor: Executor, report: Callable[[int], None]) -> None:
    """Run all of ``tasks``. When this returns or raises, none of them runs any more.

    Args:
        tasks: each returns how many bytes it has brought.
        executor: runs them.
        report: called in the caller's thread with the bytes of each, when they are there.

    Raises: what the first task to fail has raised, or ``report``.
    """
    futures = [executor.submit(task) for task in tasks]
    try:
        for future in as_completed(futures):
            report(future.result())
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
