"""torch's key-value store is asked here, so that every wait has a deadline and can be interrupted.

torch blocks in C++ where no signal gets through, so it is called on other threads.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Event, Thread
from typing import Any, TypeVar

from torch._C._distributed_c10d import TCPStore

from ckpt_transport.errors import JoinError

Answer = TypeVar("Answer")


class Recheck:
    """Has who asks the store, and waits for what is not there yet, look again.

    Attributes:
        over: nobody waits for the answer any more.
    """

    def __init__(self) -> None:
        self.over = False
        self._asked = Event()

    def look(self) -> None:
        """There may be something to find."""
        self._asked.set()

    def pause(self, seconds: float) -> None:
        """Wait so long, or until :meth:`look` is called."""
        self._asked.wait(seconds)
        self._asked.clear()

    def end(self) -> None:
        """Nobody waits any more."""
        self.over = True
        self._asked.set()


Wait = Callable[["Future[Any]", float, Recheck], None]
"""Waits until the future has ended, for so many seconds at most, and may have whoever works on it look again."""


def wait_only(outcome: Future[Any], timeout: float, recheck: Recheck) -> None:
    """Wait, and hear nothing meanwhile."""
    with suppress(TimeoutError):
        outcome.exception(timeout)


class SharedStore:
    """Asks the store that listens at ``host`` and ``port``, or makes one there.

    Args:
        host, port: of the store.
        may_listen: make it, if nobody has.
        hint: what to do where it is not there, for messages.
    """

    def __init__(self, host: str, port: int, *, may_listen: bool, hint: str) -> None:
        self._host, self._port, self._may_listen, self._hint = host, port, may_listen, hint
        self._store: TCPStore | None = None

    @property
    def is_open(self) -> bool:
        """Whether it was there when it was asked last."""
        return self._store is not None

    def ask(
        self, act: Callable[[TCPStore, Recheck], Answer], patience: float, timeout: float, wait: Wait = wait_only
    ) -> Answer:
        """What ``act`` returns; it may pause with its second argument, and ends when that is over.

        Args:
            act: asks the store.
            patience: how many seconds to wait for the store to be there.
            timeout: how many seconds ``act`` may take.
            wait: how that is waited for.

        Raises:
            JoinError: the store is not there, or broke.
            TimeoutError: ``act`` did not end in time.
        """
        if self._store is None:
            self._store = self._connect(patience)
        store = self._store
        try:
            return _interruptible(lambda recheck: act(store, recheck), timeout, wait)
        except RuntimeError as error:
            self._store = None
            raise JoinError(f"torch's store at {self._host}:{self._port} failed: {error}; {self._hint}") from error

    def _connect(self, timeout: float) -> TCPStore:
        def connect(_: Recheck) -> TCPStore:
            if self._may_listen:
                with suppress(RuntimeError):  # somebody listens there, as the process group of a trainer
                    return self._open(timeout, listen=True)
            return self._open(timeout, listen=False)

        try:
            return _interruptible(connect, timeout)
        except (RuntimeError, TimeoutError) as error:
            raise JoinError(
                f"torch's store at {self._host}:{self._port} (MASTER_ADDR, MASTER_PORT) does not answer within "
                f"{timeout:g} s; {self._hint}"
            ) from error

    def _open(self, timeout: float, *, listen: bool) -> TCPStore:
        patience = datetime.timedelta(seconds=timeout)
        return TCPStore(self._host, self._port, None, listen, patience, wait_for_workers=False, multi_tenant=listen)


def _interruptible(act: Callable[[Recheck], Answer], timeout: float, wait: Wait = wait_only) -> Answer:
    """Run ``act`` on a thread of its own and wait for it, so that signals reach this one.

    What has not ended after the wait, and does not look at its argument, ends with the process at the latest.

    Raises:
        TimeoutError: it did not end within ``timeout`` seconds.
        BaseException: what it raised.
    """
    recheck = Recheck()
    outcome: Future[Answer] = Future()

    def run() -> None:
        try:
            outcome.set_result(act(recheck))
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, name="ckpt-transport-rendezvous", daemon=True).start()
    try:
        wait(outcome, timeout, recheck)
        return outcome.result(0)
    finally:
        recheck.end()
