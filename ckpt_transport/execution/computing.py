"""What threads of the host compute of buckets: in which tasks, and when it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch

from ckpt_transport.memory import Fence
from ckpt_transport.memory.digest_pages import Digest

Work = TypeVar("Work")
TASK_BYTES = 4 << 20
"""About a millisecond's work: to hand over shorter tasks costs more than they do."""


def in_tasks(work: Iterable[Work], nbytes: Callable[[Work], int]) -> Iterator[Sequence[Work]]:
    """Cut work into tasks of neighbours, each of :data:`TASK_BYTES` or the first piece that goes beyond them."""
    task: list[Work] = []
    left = TASK_BYTES
    for each in work:
        task.append(each)
        left -= nbytes(each)
        if left <= 0:
            yield task
            task, left = [], TASK_BYTES
    if task:
        yield task


def known(found: Digest) -> Future[Digest]:
    """A digest that nobody has to wait for."""
    computed: Future[Digest] = Future()
    computed.set_result(found)
    return computed


class ReadTwice:
    """The end of what an engine reads and of a digest that is computed on the host beside it."""

    def __init__(self, end: Fence | None, computing: Future[Digest]) -> None:
        self._end, self._computing = end, computing

    def synchronize(self) -> None:
        if self._end is not None:
            self._end.synchronize()
        self._computing.result()

    def query(self) -> bool:
        return (self._end is None or self._end.query()) and self._computing.done()

    def wait(self, stream: torch.cuda.Stream) -> None:
        if self._end is not None:
            self._end.wait(stream)
        self._computing.result()
