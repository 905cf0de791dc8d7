"""The inbox of the engine: requests wait there for it, and those who asked wait for its answers."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Sequence
from concurrent.futures import Future

from examples.llama.messages import Reply, Request

REQUEST_TIMEOUT = 100.0


class EngineGoneError(RuntimeError):
    """The engine is gone, or did not answer in time."""


class Inbox:
    """Any number of threads ask; the thread of the engine takes requests and answers them by their numbers."""

    def __init__(self) -> None:
        self._requests = queue.SimpleQueue[tuple[int, Request]]()
        self._waiting: dict[int, Future[Sequence[Reply]]] = {}
        self._numbers = itertools.count()
        self._closed = ""

    def ask(self, request: Request) -> Sequence[Reply]:
        """Every worker's reply, by rank; of a generation, one.

        Raises:
            EngineGoneError: there is no answer.
        """
        number, future = next(self._numbers), Future[Sequence[Reply]]()
        self._waiting[number] = future
        self._requests.put((number, request))
        try:
            if self._closed:
                raise EngineGoneError(self._closed)
            return future.result(REQUEST_TIMEOUT)
        except TimeoutError as error:
            raise EngineGoneError(f"no answer from the workers in {REQUEST_TIMEOUT:g} s") from error
        finally:
            self._waiting.pop(number, None)

    def take(self, patience: float) -> list[tuple[int, Request]]:
        """The requests that have come; waits for the first up to ``patience`` seconds."""
        taken: list[tuple[int, Request]] = []
        try:
            taken.append(self._requests.get(timeout=patience) if patience else self._requests.get_nowait())
            while True:
                taken.append(self._requests.get_nowait())
        except queue.Empty:
            return taken

    def answer(self, number: int, replies: Sequence[Reply]) -> None:
        """Hand the replies to whoever asked, if somebody here did and still waits."""
        future = self._waiting.pop(number, None)
        if future is not None:
            future.set_result(replies)

    def close(self, reason: str) -> None:
        """Refuse all that wait and all that will come."""
        self._closed = reason
        for number in list(self._waiting):
            future = self._waiting.pop(number, None)
            if future is not None:
                future.set_exception(EngineGoneError(reason))
