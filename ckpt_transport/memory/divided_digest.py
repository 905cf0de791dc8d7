"""A digest of host memory is computed in parts, by threads that copy the same bytes, while these are in a cache."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.memory.digest_pages import COLUMNS, PAGE_BYTES, ROWS, Digest, Words, page_count
from ckpt_transport.memory.host_digest import PAGES_AT_ONCE, add_sums, sums_along

PART_BYTES = 8 * PAGE_BYTES
"""A core's share of a cache holds so much, and to hand it over costs nothing beside it."""

Along = Callable[[int], None]
"""Called by a thread that is about to read a bucket up to that byte."""


class DividedDigest:
    """What :func:`ckpt_transport.memory.digest.digest` says of these runs.

    Args:
        runs: of each where it starts in its bucket, and its bytes; ascending, not empty, on the host.

    Attributes:
        result: the digest, when all parts have been computed; or why one could not be.
    """

    def __init__(self, runs: Iterable[tuple[int, torch.Tensor]]) -> None:
        self.result: Future[Digest] = Future()
        self._parts: deque[tuple[int, npt.NDArray[np.uint8], int]] = deque()
        page = 0
        for at, run in runs:
            raw = run.numpy()
            for start in range(0, raw.size, PART_BYTES):
                part = raw[start : start + PART_BYTES]
                self._parts.append((at + start, part, page))
                page += page_count(part.size)
        self._left, self._pages = len(self._parts), page
        self._rows, self._columns = np.empty((page, ROWS), np.uint64), np.empty((page, COLUMNS), np.uint64)
        self._lock = threading.Lock()

    def compute(self, until: float = math.inf) -> None:
        """Compute what begins before byte ``until`` of the bucket and nobody has begun. Any thread may call.

        Whatever ends this early ends :attr:`result` too, and nothing is left to compute.
        """
        try:
            with np.errstate(over="ignore"):
                while (part := self._begin(until)) is not None:
                    raw, page = part
                    some = slice(page, page + page_count(raw.size))
                    sums_along(raw, self._rows[some], self._columns[some])
                    self._end()
        except BaseException as error:
            self._fail(error)
            raise

    def cancel(self) -> None:
        """Leave nothing to compute, and let go of whoever waits: :attr:`result` is cancelled unless it is there."""
        with self._lock:
            self._parts.clear()
            self.result.cancel()

    def _begin(self, until: float) -> tuple[npt.NDArray[np.uint8], int] | None:
        with self._lock:
            if not self._parts or self._parts[0][0] >= until:
                return None
            _, raw, page = self._parts.popleft()
            return raw, page

    def _end(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        sums = self._summed()
        with self._lock:
            if not self.result.done():
                self.result.set_result(sums.tobytes())

    def _summed(self) -> Words:
        """Both sums of all pages: what is small is done once for many of them."""
        sums = np.zeros(2, np.uint64)
        for first in range(0, self._pages, PAGES_AT_ONCE):
            some = slice(first, first + PAGES_AT_ONCE)
            add_sums(sums, np.concatenate((self._rows[some].ravel(), self._columns[some].ravel())), first)
        return sums

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._parts.clear()
            if not self.result.done():
                self.result.set_exception(error)
