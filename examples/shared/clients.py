"""Clients that keep a server busy, and remember how every request went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Self

import httpx
import msgspec

from tests.support.serving import ServeError

TIMEOUT = 60.0
LEAVE_TIMEOUT = 1.0


class Answer(NamedTuple):
    """What a server said: when each token came, on the monotonic clock, and which version computed it, if it tells."""

    moments: tuple[float, ...]
    versions: tuple[str, ...] = ()


class Served(NamedTuple):
    """One request: when it began and ended, on the monotonic clock, and its answer, or why there is none."""

    start: float
    end: float
    answer: Answer | None
    error: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def versions(self) -> tuple[str, ...]:
        return self.answer.versions if self.answer is not None else ()

    def longest_wait(self, around: float | None = None) -> float:
        """Seconds that the client waited for the next token, at most, or at the moment ``around``."""
        times = (self.start, *(self.answer.moments if self.answer is not None else ()), self.end)
        waits = pairwise(times) if around is None else ((a, b) for a, b in pairwise(times) if a <= around <= b)
        return max((b - a for a, b in waits), default=0.0)


Ask = Callable[[httpx.Client, int], Answer]
"""Sends a request, as the client of that number; raises ServeError, or what httpx or msgspec raises, when it fails."""


class Clients:
    """Threads that send one request after the other for as long as the context lasts.

    Args:
        url: of the server.
        ask: sends a request.
        threads: how many requests are under way at any time.
    """

    def __init__(self, url: str, ask: Ask, threads: int = 4) -> None:
        self._url, self._ask = url, ask
        self._news = threading.Condition()
        self._served: list[Served] = []
        self._over = False
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]

    def served(self) -> list[Served]:
        """Every request that has ended, in that order."""
        with self._news:
            return list(self._served)

    def wait(self, count: int, since: float) -> None:
        """Wait until ``count`` requests that began after ``since`` have ended or one failed, but not for ever."""

        def enough() -> bool:
            done = self._served
            return any(each.error for each in done) or sum(each.start >= since for each in done) >= count

        with self._news:
            self._news.wait_for(enough, TIMEOUT)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join(TIMEOUT if kind is None else LEAVE_TIMEOUT)

    def _run(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=TIMEOUT, trust_env=False) as client:
            while not self._over:
                served = self._request(client, number)
                with self._news:
                    self._served.append(served)
                    self._news.notify_all()
                if served.error:
                    return

    def _request(self, client: httpx.Client, number: int) -> Served:
        start = time.monotonic()
        try:
            answer = self._ask(client, number)
        except (ServeError, httpx.HTTPError, msgspec.MsgspecError) as error:
            return Served(start, time.monotonic(), None, f"{type(error).__name__}: {error}")
        return Served(start, time.monotonic(), answer)
