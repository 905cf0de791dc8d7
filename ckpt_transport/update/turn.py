"""Updates of one server take turns. A newer one may take the turn of one that has held no forward pass yet."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ckpt_transport.errors import SupersededError, TransferTimeout
from ckpt_transport.update.caller import caller


class Turn:
    """The turn of one update. All methods may be called from any thread.

    Args:
        call: what has asked for it, in words.

    Attributes:
        decided: members may have been told to serve the version, and nobody goes back.
        ended: the next may have its turn. Whoever has the turn sets it, and calls nothing before, because an interrupt
            may come at any call.
        changed: set when it may be its turn, or no more.
    """

    def __init__(self, call: str) -> None:
        self.call, self.decided, self.ended = call, False, False
        self.changed = threading.Event()
        self._lock = threading.Lock()
        self._newer = self._given_up = ""
        self._kept = False
        self._parked_by: object = None
        self._end: Callable[[], None] | None = None

    @property
    def superseded(self) -> bool:
        return bool(self._newer)

    @property
    def is_parked_here(self) -> bool:
        """Whether this thread or task has staged a version in this turn, which waits for its commit."""
        return self._parked_by is caller()

    def check(self) -> None:
        """
        Raises:
            SupersededError: a newer update has taken this turn; names it.
            TransferTimeout: it was given up while its thread was stuck; says why.
        """
        if self._given_up:
            raise TransferTimeout(self._given_up)
        if self._newer:
            raise SupersededError(f"{self._newer} has taken the place of {self.call}")

    def keep(self) -> None:
        """Forward passes are held from now on: whoever comes waits for the end.

        Raises:
            SupersededError: as :meth:`check`.
        """
        with self._lock:
            self.check()
            self._kept = True

    def decide(self) -> None:
        """Members are told to serve the version now.

        Raises:
            TransferTimeout: they were told already that it was given up.
        """
        with self._lock:
            if self._given_up:
                raise TransferTimeout(self._given_up)
            self.decided = True

    def give_up(self, reason: str) -> bool:
        """Members are told that the update is over, unless they may have been told to serve it; whether they are."""
        with self._lock:
            if not (self.decided or self.ended):
                self._given_up = reason
            return bool(self._given_up)

    def park(self, end: Callable[[], None]) -> None:
        """The version is staged, and no call runs until its owner goes on.

        Args:
            end: gives the version up, on the thread of a newer update that takes this turn.

        Raises:
            SupersededError: as :meth:`check`.
        """
        with self._lock:
            self.check()
            self._parked_by, self._end = caller(), end

    def supersede(self, newer: str) -> Callable[[], None]:
        """Take the turn for the call ``newer``, if it is not too late.

        Returns: gives up what is parked, if anything is. Who runs a call sees at :meth:`check` that it is over.
        """
        with self._lock:
            if self._kept:
                return _nothing_parked
            self._newer = self._newer or newer
            return self._end or _nothing_parked


def _nothing_parked() -> None:
    pass
