"""A thread that waits can be interrupted by another one, as the main thread is by a signal."""

from __future__ import annotations

import threading


class Interruptions:
    """Errors that are to be raised in certain threads, each once."""

    def __init__(self) -> None:
        self._errors: dict[int, BaseException] = {}

    def add(self, thread: int, error: BaseException) -> None:
        self._errors[thread] = error

    def take(self, thread: int) -> BaseException | None:
        return self._errors.pop(thread, None) if self._errors else None

    def raise_here(self) -> None:
        """Raise what is for the calling thread."""
        if error := self.take(threading.get_ident()):
            raise error
