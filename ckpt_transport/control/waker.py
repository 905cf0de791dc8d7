"""A waker ends the wait of a thread that polls sockets."""

from __future__ import annotations

import io
import os
import threading


class Waker:
    """Wakes whoever waits, or is the next to wait. Wakes before that are one, and no system call where nobody waits.

    Attributes:
        descriptor: is readable while whoever waits is to stop; poll it between :meth:`begin` and :meth:`end`.
    """

    def __init__(self) -> None:
        self.descriptor, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._read, self._written = io.FileIO(self.descriptor), io.FileIO(written, "w")
        self._lock = threading.RLock()
        """One that a signal handler may take again, which interrupts who holds it."""
        self._is_woken = self._waits = self._closed = False

    def wake(self) -> None:
        """End the wait, from any thread; of a closed one nobody waits."""
        with self._lock:
            if self._is_woken or self._closed:
                return
            self._is_woken = True
            if self._waits:
                self._written.write(b"!")

    def begin(self) -> bool:
        """Somebody is about to wait; return whether it was woken, and should not."""
        with self._lock:
            self._waits = True
            return self._is_woken

    def end(self) -> bool:
        """The wait is over; return whether it was woken."""
        with self._lock:
            self._waits = False
            woken, self._is_woken = self._is_woken, False
            if woken and not self._closed:
                self._read.read(1)
            return woken

    def close(self) -> None:
        """Idempotent; one that was interrupted is done by the next."""
        with self._lock:
            self._closed = True
            self._read.close()
            self._written.close()
