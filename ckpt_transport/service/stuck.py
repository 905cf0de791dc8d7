"""A listener's thread may be stuck in somebody else's code; this is what becomes of its update then."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.errors import PeerLostError, UpdateAbortedError
from ckpt_transport.reasons import reason_of
from ckpt_transport.service import questions as q
from ckpt_transport.service.watchdog import UNSEEN_SECONDS, Watchdog
from ckpt_transport.update import messages as m
from ckpt_transport.update.follower import Follower

TICK_SECONDS = 0.2
logger = logging.getLogger(__name__)


class MayBeStuck(ABC):
    """Ends an update from another thread when the member's own cannot, and answers in its place; see :class:`Watchdog`.

    The member's thread does everything else. When it comes back, it finds that its update is over, and cleans up.
    """

    config: Config
    _mailbox: Mailbox
    _kind: str
    _coordinator: str
    _follower: Follower | None
    _stopping: threading.Event

    def _watch_over(self, patience: float) -> None:
        """Begin. ``patience``: seconds that this member's thread gets to end an update by itself."""
        self._watchdog = Watchdog(patience, self._must_end, self._end_elsewhere, self._stand_in)
        self._ending: Follower | None = None
        self._must_end_because = ""
        """Why the update has to end, once that is known here."""
        self._idle = threading.Event()
        """Set while nothing is served."""
        self._idle.set()

    @property
    @abstractmethod
    def label(self) -> str:
        """What people call it."""

    @abstractmethod
    def _served(self) -> q.ServedVersion: ...

    @abstractmethod
    def _answers(self, sender: str, message: Message) -> bool: ...

    @abstractmethod
    def _concerns(self, sender: str, order: m.AnyOrder) -> bool: ...

    @abstractmethod
    def _end(self, follower: Follower | None, reason: BaseException) -> None: ...

    def _given_up_elsewhere(self, follower: Follower, reason: str) -> bool:
        """Say what may be served, on another thread, while this member's is stuck; whether a mix is left."""
        follower.revoke()
        return False

    # -- on this member's thread, or one that works for it ----------------------------------------------------------

    @contextmanager
    def _seen(self) -> Iterator[None]:
        """Around what looks whether the update must end: remembers that, for whom it cannot stop."""
        self._check_not_given_up()
        self._watchdog.looked()
        try:
            yield
        except (UpdateAbortedError, PeerLostError) as error:
            self._must_end_because = reason_of(error)
            raise

    def _check_not_given_up(self) -> None:
        """
        Raises:
            UpdateAbortedError: the update was given up while a call did not return; what it would end is over.
        """
        if self._watchdog.stuck:
            raise UpdateAbortedError(f"the update was given up: {self._watchdog.stuck}")

    def _come_back(self) -> None:
        """The call has returned, and the update that it was for is over."""
        logger.warning("%s is not stuck any more, and takes updates again", self.label)
        if self._follower is not None:
            reason = self._must_end_because or "it was given up while a call did not return"
            self._end(self._follower, UpdateAbortedError(reason))

    # -- on the watchdog's thread -----------------------------------------------------------------------------------

    def _must_end(self) -> str:
        """Why the update must end, although this member's thread does not see it. Answers questions meanwhile."""
        with self._mailbox.borrowed():
            self._mailbox.pump(0)
            for _ in self._mailbox.receive_all(q.AskVersion):
                self._mailbox.answer(self._served())
            if self._stopping.is_set():
                return f"the {self._kind} was closed"
            follower = self._follower
            if self._must_end_because or follower is None:
                return self._must_end_because
            if time.monotonic() > follower.deadline:
                return f"the update by {self._coordinator} did not end before its deadline"
            try:
                self._mailbox.check_alive([self._coordinator])
            except PeerLostError as lost:
                return str(lost)
            for sender, message in self._mailbox.unread():
                if isinstance(message, m.Abort) and self._concerns(sender, message):
                    return message.reason or "it was aborted"
        return ""

    def _end_elsewhere(self, reason: str) -> None:
        """The update is over for everybody else: the engine serves what it may."""
        stuck = self._watchdog.stuck
        logger.error("%s is stuck (%s); its update is given up: %s", self.label, stuck, reason)
        follower = self._follower or self._ending
        if follower is not None:
            why = f"{reason}; {stuck}"
            tainted = True
            try:
                tainted = self._given_up_elsewhere(follower, why)
            finally:
                self._mailbox.send(self._coordinator, m.Aborted(follower.update, tainted, why))

    def _stand_in(self) -> None:
        """Say what is served, and that no update can be taken."""
        with self._mailbox.borrowed():
            while (received := self._mailbox.receive(0)) is not None:
                sender, message = received
                if not self._answers(sender, message) and isinstance(message, m.Invite):
                    until = "takes no update until a call returns or its process is restarted"
                    reason = f"{self.label} {until}: {self._watchdog.stuck}"
                    self._mailbox.answer(m.Busy(message.update, message.address, reason))

    # -- on the thread of whoever closes it -------------------------------------------------------------------------

    def _has_ended(self) -> bool:
        """Whether serving has ended, or does so in time."""
        deadline = time.monotonic() + 2 * (self.config.heartbeat_timeout + UNSEEN_SECONDS)
        while not self._idle.wait(TICK_SECONDS):
            if self._watchdog.stuck or time.monotonic() > deadline:
                return False
        return True

    def _leave_behind(self) -> None:
        """Close what does not depend on the thread that does not end."""
        stuck = self._watchdog.stuck or self._watchdog.where()
        logger.error("%s was closed and does not end, because %s", self.label, stuck)
        self._watchdog.stop()
        self._mailbox.close()
