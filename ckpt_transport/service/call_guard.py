"""A guard admits the public calls of an object one after the other, in the process that made it, until it is closed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from ckpt_transport.errors import UsageError

Result = TypeVar("Result")


class CallGuard:
    """Admits the calls of one object. All methods may be called from any thread.

    It runs them, and is no context: an interrupt may come after a context's block and before its end.

    Sockets, threads and locks do not survive a fork: a child that used its parent's would hang, or speak for it. So a
    child is refused, and what it closes is left alone, because it is the parent's.

    Args:
        owner: what the object is called in messages, as ``ParameterServer``.
    """

    def __init__(self, owner: str) -> None:
        self._owner, self._process = owner, os.getpid()
        self._turn = threading.RLock()
        self._running = ""
        self._thread = 0
        self._closed = False

    @property
    def here(self) -> bool:
        """Whether this process made the object."""
        return os.getpid() == self._process

    @property
    def inside(self) -> bool:
        """Whether this thread is in a call, as a callback or a signal handler is."""
        return self._thread == threading.get_ident()

    def check(self) -> None:
        """Admit a call that need not wait for others.

        Raises:
            UsageError: another process made the object, or it was closed.
        """
        if not self.here:
            raise UsageError(
                f"this {self._owner} was made in process {self._process}, and this is process {os.getpid()}: its "
                "sockets and threads do not survive a fork; make one in this process"
            )
        if self._closed:
            raise UsageError(f"this {self._owner} was closed; make another one")

    def one(self, call: str, timeout: float, act: Callable[[], Result]) -> Result:
        """Run ``act`` when no other call runs; another that comes meanwhile waits until it has ended.

        Returns: what ``act`` does.

        Raises:
            UsageError: as :meth:`check`; or this thread is in a call already; or the call that runs did not end within
                ``timeout`` seconds.
        """
        self.check()
        self.refuse_inside(call)

        def admitted() -> Result:
            self.check()
            return act()

        return self._alone(call, timeout, admitted)

    def last(self, close: Callable[[], None]) -> None:
        """Admit no further call, wait until the one that runs has ended, and close the object.

        In a child after a fork nothing is done, because the object is its parent's.

        Raises:
            UsageError: this thread is in a call.
        """
        if self.here:
            self.refuse_inside("close()")
            self._closed = True
            self._alone("close()", -1, close)

    def _alone(self, call: str, timeout: float, act: Callable[[], Result]) -> Result:
        """Meanwhile no other thread is admitted. An interrupt may come at any step: nothing stays locked."""
        thread = threading.get_ident()
        try:
            self._wait(call, timeout)
            return act()
        finally:
            if self._thread == thread:
                self._running, self._thread = "", 0
            try:  # noqa: SIM105 - no function in Python is called before the lock is free
                self._turn.release()
            except RuntimeError:  # this thread still waited for it
                pass

    def refuse_inside(self, call: str) -> None:
        """
        Raises:
            UsageError: this thread is in a call already.
        """
        if self.inside:
            raise UsageError(f"{call} was called inside {self._running} of the same {self._owner}; call it afterwards")

    def _wait(self, call: str, timeout: float) -> None:
        if not self._turn.acquire(timeout=timeout):
            raise UsageError(f"{call} has waited {timeout:g} s for {self._running} of the same {self._owner} to end")
        self._running, self._thread = call, threading.get_ident()
