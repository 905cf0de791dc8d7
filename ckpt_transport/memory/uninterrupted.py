"""What must not be left half done runs on a thread of its own, where no interrupt reaches it."""

from __future__ import annotations

import threading
from collections.abc import Callable


def uninterrupted(work: Callable[[], None]) -> None:
    """Run ``work`` to its end. An interrupt that comes meanwhile is raised afterwards; one before it, instead of it.

    Raises: what ``work`` raises.
    """
    may_run: list[bool] = []
    decided, ended = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        decided.wait()
        try:
            if may_run:
                work()
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="ckpt-transport-uninterrupted", daemon=True)
    interrupt: BaseException | None = None
    try:
        thread.start()
        may_run.append(True)
    except BaseException as error:
        interrupt = error
    while not (decided.is_set() and (ended.is_set() or not may_run)):
        try:
            decided.set()
            if may_run:
                ended.wait()
        except BaseException as error:
            interrupt = error
    if failures:
        raise failures[0]
    if interrupt is not None:
        raise interrupt
