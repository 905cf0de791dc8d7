"""A source rank above 0 joins the coordinator of an update and follows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from hmac import compare_digest

import msgspec

from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.messages import Refused
from ckpt_transport.errors import JoinError, TransferTimeout, UpdateAbortedError
from ckpt_transport.memory import Backing
from ckpt_transport.planning import ServedShares
from ckpt_transport.reasons import reason_of
from ckpt_transport.transports import registry
from ckpt_transport.update import messages as m
from ckpt_transport.update.follower import Follower
from ckpt_transport.update.participant import Halted, Participant
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport.update.routes import RouteTable

TICK_SECONDS = 0.2
TELL_SECONDS = 5.0
"""After so long it is said who is waited for."""
CURE = "is it running, and does it make the same call?"
AGAIN_SECONDS = 2.0
"""After so long without a word this rank joins a second time."""
EVERYTHING = ServedShares()
logger = logging.getLogger(__name__)
Offer = tuple[Sequence[Backing], m.Join]
"""What is behind a source rank's extents, and how it introduces itself with them."""


class SentWholeError(UpdateAbortedError):
    """A difference could not be taken, and the coordinator goes on with everything."""


class FollowingSource:
    """Takes part in one update that the coordinator leads: :meth:`commit`, or :meth:`stage` before.

    Args:
        mailbox, table, plans: this rank's.
        coordinator: its address.
        first: what this rank brings, as it says at first.
        offer: what it brings when it is asked again: its difference to what an update of that name has brought, as
            sinks serve it, or everything.
        timeout: seconds after which the update is given up.

    Attributes:
        committed: the update has ended well.
        joined: the coordinator may have heard of this rank.
        looked: told whenever this rank's thread looks around.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        table: RouteTable,
        plans: PlanCache,
        coordinator: str,
        first: Offer,
        offer: Callable[[str, ServedShares], Offer],
        timeout: float,
    ) -> None:
        self._mailbox, self._table, self._plans, self._coordinator = mailbox, table, plans, coordinator
        self._offer, self._timeout, self._deadline = offer, timeout, time.monotonic() + timeout
        self._join, self._participant = self._prepared(first)
        self._follower: Follower | None = None
        self._again_at, self._silence = 0.0, AGAIN_SECONDS
        self.looked: Callable[[], None] = lambda: None
        self.committed = self.joined = self._surely = self._left = self._has_told = False

    def _prepared(self, offer: Offer, number: int = 0) -> tuple[m.Join, Participant]:
        """An introduction, and what takes part by it."""
        extents, join = offer
        participant = Participant(self._mailbox, self._table, self._plans, extents, None, self._deadline)
        return msgspec.structs.replace(join, number=number), participant

    @property
    def nonce(self) -> str:
        """What the coordinator knows this rank by."""
        return self._join.nonce

    @property
    def update(self) -> str:
        """The name of the update; empty before it is known."""
        return "" if self._follower is None else self._follower.update

    def _begin(self) -> None:
        while self._mailbox.receive(0) is not None:
            pass
        self.joined = True
        self._come()
        self._surely = True

    def _come(self) -> None:
        """Join; later again, ever less often: an interrupt may have taken it from a coordinator that was reading."""
        self._mailbox.send(self._coordinator, self._join)
        self._again_at = time.monotonic() + self._silence
        self._silence *= 2

    @property
    def waits(self) -> bool:
        """Whether the version waits for its commit."""
        return self._follower is not None and self._follower.waits

    def stage(self) -> None:
        """Follow orders until the version waits for its commit, or is committed at once.

        Raises: as :meth:`commit`.
        """
        self._follow(lambda: self.waits)

    def commit(self) -> None:
        """Follow orders up to the commit, or to where a warm-up ends.

        Raises:
            UpdateAbortedError: the coordinator gave up; it knows which sinks are concerned.
            JoinError: it did not lead an update in time.
            PeerLostError: the coordinator is gone.
            TransferTimeout: nothing was committed in time.
        """
        self._follow(lambda: False)

    def _follow(self, enough: Callable[[], bool]) -> None:
        try:
            if not self.joined:
                self._begin()
            while not (self.committed or enough()):
                try:
                    self.committed = isinstance(self._next(), m.Commit | m.Dismiss)
                except SentWholeError as error:
                    self._part(error)
                    self._join_anew("", number=self._join.number)
        except BaseException as error:
            self.leave(error)
            raise

    def _join_anew(self, base_update: str, served: ServedShares = EVERYTHING, number: int = 0) -> None:
        self._follower = None
        self._join, self._participant = self._prepared(self._offer(base_update, served), number)
        self._mailbox.send(self._coordinator, self._join)

    def leave(self, reason: BaseException) -> None:
        """Tell the coordinator that this rank does not go on, and why; where it has not ended or left already."""
        if not (self.committed or self._left):
            self._left = True
            registry.look_again()
            self._part(reason)

    def _part(self, reason: BaseException) -> None:
        follower = self._follower
        update, why = "" if follower is None else follower.update, reason_of(reason)
        if not self._surely:  # who has not come cannot leave
            self._mailbox.send(self._coordinator, self._join)
        if not isinstance(reason, UpdateAbortedError):
            self._mailbox.send(self._coordinator, m.Failed(update, type(reason).__name__, why))
        self._table.abort(reason)
        nonce = "" if update else self._join.nonce
        self._mailbox.send(self._coordinator, m.Aborted(update, tainted=False, reason=why, nonce=nonce))

    def _next(self) -> m.AnyOrder | None:
        """Follow one order, if one comes soon."""
        self.looked()
        if self._follower is not None:
            self._mailbox.check_alive([self._coordinator])
        elif time.monotonic() > self._again_at:
            self._come()
        if self._follower is None:
            self._look_at_patience()
        if late := self.overdue:
            raise TransferTimeout(late)
        received = self._mailbox.receive(TICK_SECONDS)
        if received is None or not self._accepts(*received):
            return None
        order = received[1]
        if isinstance(order, m.Differ):
            self._join_anew(order.base_update, order.served, order.number)
            return None
        assert self._follower is not None
        assert isinstance(order, m.Order)
        if isinstance(order, m.Abort):
            raise _ended_by(order)
        answer = self._follower.answer(order, self._watch)
        if answer is not None:
            self._mailbox.send(self._coordinator, answer)
        return order

    @property
    def overdue(self) -> str:
        """Why this rank should have ended; empty while it may go on. From any thread."""
        follower = self._follower
        if self.committed or time.monotonic() <= (self._deadline if follower is None else follower.deadline):
            return ""
        return (
            f"the update led by {self._coordinator} was not committed within {self._timeout:g} s, or in the time that "
            "it was given to wait for its commit"
        )

    def give_up(self, reason: str) -> str:
        """Have the coordinator not wait for this rank, which is stuck; it tells sinks that the update is over."""
        if self.update:
            self._mailbox.send(self._coordinator, m.Aborted(self.update, tainted=False, reason=reason))
        return "source rank 0 tells sinks that it is over"

    def _look_at_patience(self) -> None:
        """Say once for whom this rank waits.

        Raises:
            JoinError: nobody has led an update in time.
        """
        left, leader = self._deadline - time.monotonic(), f"source rank 0 at {self._coordinator}"
        assert self._join.manifest is not None
        what = f"an update to '{self._join.manifest.version}'"
        if left <= 0:
            raise JoinError(f"{leader} did not lead {what} within {self._timeout:g} s (update_timeout); {CURE}")
        if not self._has_told and left < self._timeout - TELL_SECONDS:
            self._has_told = True
            logger.warning("waiting up to %.0f s more for %s to lead %s; %s", left, leader, what, CURE)

    def _accepts(self, sender: str, message: Message) -> bool:
        """Whether it is an order to be followed; what else there is is refused, unless it is a refusal itself."""
        if isinstance(message, Refused):
            if sender == self._coordinator and message.about in ("", self._join.nonce):
                raise JoinError(f"{self._coordinator} refuses: {message.reason}")
            return False
        if isinstance(message, m.Summons):  # this rank has found that already
            return False
        objection = f"only {self._coordinator} leads this source"
        if sender == self._coordinator and isinstance(message, m.Differ):
            known = compare_digest(message.nonce.encode(), self._join.nonce.encode())
            return known and self._follower is None
        if sender == self._coordinator and isinstance(message, m.Order):
            if self._follower is None and compare_digest(message.nonce.encode(), self._join.nonce.encode()):
                self._mailbox.watch(self._coordinator)
                self._follower = Follower(
                    message.update, self._join.nonce, self._participant, None, self._timeout, self._deadline
                )
            follower = self._follower
            objection = "it is not said to this source" if follower is None else follower.objection(message)
        if objection:
            self._mailbox.refuse(objection, getattr(message, "update", ""))
        return not objection

    def _watch(self) -> None:
        self.looked()
        while (received := self._mailbox.receive(0)) is not None:
            if not self._accepts(*received):
                continue
            match received[1]:
                case m.Abort() as abort:
                    raise _ended_by(abort)
                case m.Halt(reason=reason):
                    raise Halted(reason)
        self._mailbox.check_alive([self._coordinator])


def _ended_by(abort: m.Abort) -> UpdateAbortedError:
    return (SentWholeError if abort.again else UpdateAbortedError)(abort.reason)
