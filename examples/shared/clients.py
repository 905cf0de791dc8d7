"""Clients that keep the server busy, and remember every request."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import httpx
import msgspec

from ckpt_transport.service.endpoints import client_of
from examples.llama.protocol import Generate, Generated, encode

TIMEOUT = 60.0


class Served(msgspec.Struct, frozen=True):
    """One request: when it began and ended, and its answer, or why there is none."""

    start: float
    end: float
    answer: Generated | None
    error: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Clients:
    """Threads that send one request after the other for as long as the context lasts.

    Args:
        url: of the server.
        threads: how many requests are under way at any time.
        vocabulary: tokens of a prompt are below it.
        max_tokens: the length of an answer.
    """

    def __init__(self, url: str, *, vocabulary: int, threads: int = 6, max_tokens: int = 8) -> None:
        self._url, self._vocabulary, self._max_tokens = url, vocabulary, max_tokens
        self._news = threading.Condition()
        self._served: list[Served] = []
        self._over = False
        self._threads = [threading.Thread(target=self._run, args=(seed,), daemon=True) for seed in range(threads)]

    def served(self) -> list[Served]:
        """Every request that has ended, in that order."""
        with self._news:
            return list(self._served)

    def wait(self, what: Callable[[list[Served]], bool], timeout: float) -> bool:
        """Wait until ``what`` holds for the requests that have ended; False when it never did."""
        with self._news:
            return self._news.wait_for(lambda: what(self._served), timeout)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        for thread in self._threads:
            thread.join(TIMEOUT)

    def _run(self, seed: int) -> None:
        choice = random.Random(seed)
        with client_of(self._url, TIMEOUT) as client:
            while not self._over:
                prompt = tuple(choice.choices(range(self._vocabulary), k=8))
                served = self._request(client, Generate(prompt, self._max_tokens))
                with self._news:
                    self._served.append(served)
                    self._news.notify_all()
                if served.error:
                    return

    def _request(self, client: httpx.Client, request: Generate) -> Served:
        start = time.monotonic()
        try:
            response = client.post("/generate", content=encode(request))
            answer = msgspec.json.decode(response.raise_for_status().content, type=Generated)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            return Served(start, time.monotonic(), None, f"{type(error).__name__}: {error}")
        return Served(start, time.monotonic(), answer)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the requests.

    Attributes:
        requests, failed: how many.
        longest: seconds the longest took.
        slowest_token: seconds the slowest single token took.
        spanning: answers that one version has begun and the next one ended.
    """

    requests: int
    failed: int
    longest: float
    slowest_token: float
    spanning: int

    @classmethod
    def of(cls, served: Sequence[Served]) -> Summary:
        """Sum them up."""
        answers = [request.answer for request in served if request.answer is not None]
        return cls(
            requests=len(served),
            failed=len(served) - len(answers),
            longest=max((request.seconds for request in served), default=0.0),
            slowest_token=max((answer.slowest_token for answer in answers), default=0.0),
            spanning=sum(1 for answer in answers if len(set(answer.versions)) > 1),
        )
