"""A member is served by a thread until it is closed: it follows one message after the other."""

from __future__ import annotations

import atexit
import threading
from abc import abstractmethod
from contextlib import suppress
from typing import Self

from ckpt_transport.control import Message
from ckpt_transport.errors import UpdateAbortedError, UsageError
from ckpt_transport.events import about
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.short_turns import short_turns
from ckpt_transport.service.stuck import MayBeStuck
from ckpt_transport.update.mailbox import Rotation

TICK_SECONDS = 0.2


class Served(MayBeStuck):
    """Goes from message to message on a thread of its own (:meth:`start`) or on the caller's (:meth:`serve`)."""

    _call_guard: CallGuard
    _rotation: Rotation
    _thread: threading.Thread | None

    @abstractmethod
    def _follow_or_refuse(self, sender: str, message: Message) -> None: ...

    @abstractmethod
    def _check_coordinator(self) -> None:
        """Give up the update of a coordinator that is gone or late."""

    @abstractmethod
    def _between(self) -> None:
        """Something to do between messages."""

    @abstractmethod
    def _release(self) -> None:
        """Give back sockets, routes and memory. Idempotent."""

    def start(self) -> Self:
        """Serve on a thread of its own until :meth:`close`, which is called at the latest when the process ends.

        Raises:
            UsageError: it was started already, was closed, or was made in another process.
        """
        self._call_guard.check()
        if self._thread is not None:
            raise UsageError(f"this {self._kind} was started already")
        self._thread = threading.Thread(target=self._serve_on_thread, name=f"ckpt-transport-{self._kind}", daemon=True)
        atexit.register(self.close)
        self._thread.start()
        return self

    def serve(self) -> None:
        """Serve on the caller's thread until :meth:`close` is called from another, or in a signal handler.

        Raises:
            UsageError: it is served already, was closed, or was made in another process.
        """
        self._call_guard.one("serve()", 0, self._serve)

    def _serve(self) -> None:
        self._idle.clear()
        about.member = self.label
        try:
            while not self._stopping.is_set():
                if self._follower is None:
                    self._rotation.tend()
                self._between()
                short_turns.want(self, short=self._expects_orders)
                received = self._mailbox.receive(TICK_SECONDS)
                self._must_end_because = ""
                with self._watchdog.watching():
                    if received is not None:
                        self._follow_or_refuse(*received)
                    self._check_coordinator()
                if self._watchdog.came_back():
                    self._come_back()
        finally:
            try:
                with self._watchdog.watching():
                    if self._follower is not None:
                        self._end(self._follower, UpdateAbortedError(f"the {self._kind} was closed"))
                    self._release()
            finally:
                short_turns.want(self, short=False)
                self._idle.set()
                self._watchdog.stop()

    @property
    def _expects_orders(self) -> bool:
        """Whether an update goes on that does not wait for somebody to commit it."""
        return self._follower is not None and not self._follower.waits

    def _serve_on_thread(self) -> None:
        with suppress(UsageError):  # it was closed before the thread ran
            self.serve()

    def close(self) -> None:
        """Stop serving and release everything. Idempotent.

        Waits until serving has ended, except inside :meth:`serve`, which ends then. Where a call into a library, a
        loader or the engine does not return, that is logged within two ``heartbeat_timeout`` and 2 s. The address is
        free then, and what the call may still use is given back when it returns. In a child after a fork nothing
        happens, because all of it is the parent's.
        """
        if self._call_guard.here:
            atexit.unregister(self.close)
            self._stopping.set()
            self._mailbox.wake()
            if not self._call_guard.inside:
                if not self._has_ended():
                    self._leave_behind()
                    return
                self._call_guard.last(self._release)
                if self._thread is not None:
                    self._thread.join()
