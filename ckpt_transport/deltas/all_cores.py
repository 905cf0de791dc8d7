"""Parts of one work are done by all cores, which take them in turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ckpt_transport.memory import usable_cores

Given = TypeVar("Given")
Made = TypeVar("Made")


def by_all_cores(work: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
    """What ``work`` makes of each, in their order.

    Each core takes the next one as soon as it is free: a future for each would take longer than small pieces of work.
    When one fails, nobody begins another.

    Raises: what ``work`` raises.
    """
    cores = min(usable_cores(), len(given))
    if cores < 2:
        return list(map(work, given))
    waiting = deque(range(len(given)))
    made: dict[int, Made] = {}

    def take_turns() -> None:
        try:
            while (number := _next(waiting)) is not None:
                made[number] = work(given[number])
        except BaseException:
            waiting.clear()
            raise

    with ThreadPoolExecutor(cores, "ckpt-transport-deltas") as workers:
        turns = [workers.submit(take_turns) for _ in range(cores)]
        try:
            for turn in turns:
                turn.result()
        finally:
            waiting.clear()
    return [made[number] for number in range(len(given))]


def _next(waiting: deque[int]) -> int | None:
    """The next number, which no other thread gets; None where there is none."""
    try:
        return waiting.popleft()
    except IndexError:
        return None
