"""A device whose streams are threads, for pipelines that enqueue."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ckpt_transport.memory import Fence

PATIENCE = 60.0
LATE = 0.005
"""Seconds after which a stream does what it was given; whatever overwrites a slot too early has had time to."""


class Stream:
    """Does what it is given, one after the other, on a thread of its own and rather late."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)

    def put(self, work: Callable[[], object]) -> Mark:
        def late() -> None:
            time.sleep(LATE)
            work()

        return Mark(self._executor.submit(late))

    def wait(self, ended: Future[None]) -> None:
        self._executor.submit(ended.exception, PATIENCE)


class Mark(Fence):
    """The end of something that a stream was given."""

    def __init__(self, ended: Future[None]) -> None:
        self._ended = ended

    def synchronize(self) -> None:
        self._ended.result(PATIENCE)

    def query(self) -> bool:
        return self._ended.done()

    def wait(self, stream: Any) -> None:
        stream.wait(self._ended)
