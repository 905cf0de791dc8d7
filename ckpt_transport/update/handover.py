"""The handover of bytes to an engine, which another thread may revoke at any moment."""

from __future__ import annotations

import threading

from ckpt_transport.engine.engine import Engine
from ckpt_transport.errors import PlanMismatchError, UpdateAbortedError


class Handover:
    """Knows whether an engine still holds the old version, and gives it nothing more once that was revoked.

    Args:
        engine: of a sink; None on a source.
    """

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine
        self._exchanged = self._applying = self._revoked = False
        self._giving = threading.Lock()

    @property
    def applying(self) -> bool:
        """Whether the engine may not hold the old version any more: it has been given a byte, or was changed before."""
        return self._applying or (self.engine is not None and self.engine.spoiled)

    def begin(self, *, beside: bool) -> None:
        """The engine is given bytes from now on.

        Args:
            beside: it loads them beside what it serves.

        Raises:
            UpdateAbortedError: it was revoked.
        """
        with self._giving:
            self.check()
            self._applying = not beside

    def meanwhile(self) -> None:
        """Have the engine do what need not wait for the end of what it was given."""
        if self.engine is not None and not self._revoked:
            self.engine.meanwhile()

    def exchange(self) -> None:
        """Have the engine exchange what is staged and what it serves."""
        assert self.engine is not None
        with self._giving:
            self.check()
            self._applying = True
        try:
            self.engine.exchange()
        except Exception as error:
            self._applying = not isinstance(error, PlanMismatchError)
            raise
        except BaseException:  # an interrupt, which is raised when all is exchanged
            self._exchanged, self._applying = not self._exchanged, False
            raise
        self._exchanged, self._applying = not self._exchanged, False

    def take_back(self) -> None:
        """Have the engine serve again what it did before, if it was exchanged."""
        if self._exchanged:
            self.exchange()

    def revoke(self) -> bool:
        """Give the engine nothing from now on, whatever comes; return whether it was given a byte. From any thread."""
        with self._giving:
            self._revoked = True
            return self.applying

    def check(self) -> None:
        """
        Raises:
            UpdateAbortedError: it was revoked.
        """
        if self._revoked:
            raise UpdateAbortedError("the update was given up while a call did not return")
