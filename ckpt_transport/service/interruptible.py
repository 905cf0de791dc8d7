"""Calls into C++ may block without letting signals through; here they run on a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Done = TypeVar("Done")


class CancelToken:
    """Tells work on another thread that nobody waits for it any more."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def pause(self, seconds: float) -> bool:
        """Sleep; returns whether somebody still waits."""
        return not self._over.wait(seconds)

    def cancel(self) -> None:
        self._over.set()


class _Outcome(Generic[Done]):
    def __init__(self) -> None:
        self.result: Done | None = None
        self.error: BaseException | None = None


def interruptible(act: Callable[[CancelToken], Done], timeout: float) -> Done:
    """Run ``act`` on a thread of its own and wait for it, so that signals reach this one.

    What has not ended after the wait goes on by itself, and ends with the process at the latest.

    Raises:
        TimeoutError: it did not end within ``timeout`` seconds.
        BaseException: what it raised.
    """
    ended, token = threading.Event(), CancelToken()
    outcome: _Outcome[Done] = _Outcome()

    def run() -> None:
        try:
            outcome.result = act(token)
        except BaseException as error:
            outcome.error = error
        finally:
            ended.set()

    threading.Thread(target=run, name="ckpt-transport-rendezvous", daemon=True).start()
    try:
        if not ended.wait(timeout):
            raise TimeoutError
    finally:
        token.cancel()
    if outcome.error is not None:
        raise outcome.error
    return outcome.result  # type: ignore[return-value]
