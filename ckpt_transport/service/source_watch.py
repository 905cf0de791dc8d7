"""A source may be stuck in a transport's library; sinks hear the end of its update then, and people what hangs."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ckpt_transport.control.unclosed import close_when_collected
from ckpt_transport.service.watchdog import Watchdog

CURE = "the call ends when that one returns: interrupt it (Ctrl-C) or, where that ends nothing, end this process"
logger = logging.getLogger(__name__)


class MayHang(Protocol):
    """A source rank's part in an update.

    Attributes:
        looked: told whenever the thread that takes part looks around.
        overdue: why the update should have ended; empty while it may go on. From any thread.
    """

    looked: Callable[[], None]

    @property
    def overdue(self) -> str: ...

    def give_up(self, reason: str) -> str:
        """Tell others that the update is over, where that is this one's to do; who was told what. From any thread."""


class _Watched:
    """What the watchdog knows: it does not hold who has it, which may be collected."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.part: MayHang | None = None
        self.stuck: Callable[[], str] = str

    def overdue(self) -> str:
        return "" if self.part is None else self.part.overdue

    def give_up(self, reason: str) -> None:
        part, stuck = self.part, self.stuck()
        if part is not None:
            told = part.give_up(f"{reason}; {self.label} is stuck: {stuck}")
            logger.error("%s is stuck (%s), and %s; %s; %s", self.label, stuck, reason, told, CURE)


class SourceWatch:
    """Looks after the thread that leads or follows updates. It cannot end a call, and does nothing else than to speak.

    Args:
        label: what people call the source.
        patience: seconds that the thread gets to end an update by itself.
    """

    def __init__(self, label: str, patience: float) -> None:
        watched = self._watched = _Watched(label)
        watchdog = self._watchdog = Watchdog(patience, watched.overdue, watched.give_up, lambda: None)
        watched.stuck = lambda: watchdog.stuck
        self._closing: weakref.finalize[Any, Any] | None = None

    @contextmanager
    def over(self, part: MayHang) -> Iterator[None]:
        """Look after this thread, which takes part in an update in the block."""
        watchdog, watched = self._watchdog, self._watched
        self._closing = self._closing or close_when_collected(self, watchdog.stop)
        watchdog.came_back()
        watched.part, part.looked = part, watchdog.looked
        try:
            with watchdog.watching():
                yield
        finally:
            watched.part = None
            if watchdog.came_back():
                logger.warning("%s is not stuck any more", watched.label)

    def close(self) -> None:
        """End the watchdog until there is something to look after. Idempotent."""
        if self._closing is not None:
            self._closing.detach()
            self._closing = None
        self._watchdog.stop()
