"""Clients that keep a server busy, and remember how every completion went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

import httpx
import msgspec

from ckpt_transport.service.endpoints import client_of
from tests.support.vllm_server import COMPLETIONS, greedy

TIMEOUT = 60.0
LEAVE_TIMEOUT = 1.0
EVENT, LAST = "data: ", "data: [DONE]"
"""How lines of a stream begin that bring tokens, and the line that brings none."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Attributes:
    start, end: of the request, on the monotonic clock, in seconds.
    arrivals: when tokens came, likewise.
    error: why it failed; empty when it did not.
    """

    start: float
    end: float
    arrivals: tuple[float, ...]
    error: str = ""

    def longest_wait(self, around: float | None = None) -> float:
        """Seconds that the client waited for the next token, at most, or at the moment ``around``."""
        times = (self.start, *self.arrivals, self.end)
        waits = pairwise(times) if around is None else ((a, b) for a, b in pairwise(times) if a <= around <= b)
        return max((b - a for a, b in waits), default=0.0)


class Clients:
    """Threads that ask for one completion after the other for as long as the context lasts.

    Args:
        url: of the server.
        threads: how many requests are under way at any time.
        tokens: the length of every completion.
    """

    def __init__(self, url: str, threads: int = 4, tokens: int = 24) -> None:
        self._url, self._tokens = url, tokens
        self._news = threading.Condition()
        self._completions: list[Completion] = []
        self._over = False
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]

    def completions(self) -> list[Completion]:
        """Every one that has ended, in that order."""
        with self._news:
            return list(self._completions)

    def wait(self, count: int, since: float = 0.0) -> None:
        """Wait until ``count`` requests that began after ``since`` have ended or one failed, but not for ever."""

        def enough() -> bool:
            done = self._completions
            return any(each.error for each in done) or sum(each.start >= since for each in done) >= count

        with self._news:
            self._news.wait_for(enough, TIMEOUT)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        for thread in self._threads:
            thread.join(TIMEOUT if kind is None else LEAVE_TIMEOUT)

    def _run(self, number: int) -> None:
        with client_of(self._url, TIMEOUT) as client:
            while not self._over:
                completion = self._complete(client, f"client {number}")
                with self._news:
                    self._completions.append(completion)
                    self._news.notify_all()
                if completion.error:
                    return

    def _complete(self, client: httpx.Client, prompt: str) -> Completion:
        start, count, error = time.monotonic(), 0, ""
        arrivals: list[float] = []
        try:
            with client.stream("POST", COMPLETIONS, json=greedy(prompt, self._tokens, stream=True)) as answer:
                answer.raise_for_status()
                for tokens in _tokens(answer.iter_lines()):
                    count += tokens
                    arrivals.append(time.monotonic())
            if count != self._tokens:
                error = f"it ended after {count} of {self._tokens} tokens"
        except (httpx.HTTPError, msgspec.MsgspecError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        return Completion(start, time.monotonic(), tuple(arrivals), error)


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice]


def _tokens(lines: Iterable[str]) -> Iterator[int]:
    """How many tokens each event of a stream brought."""
    decode: Callable[[str], _Event] = msgspec.json.Decoder(_Event).decode
    for line in lines:
        if line.startswith(EVENT) and line != LAST:
            yield sum(len(choice.token_ids or ()) for choice in decode(line.removeprefix(EVENT)).choices)
