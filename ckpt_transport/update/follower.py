"""What a participant does when the coordinator says so, and in which order it may be said."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from hmac import compare_digest

from ckpt_transport.control import Message
from ckpt_transport.engine.engine import Engine
from ckpt_transport.errors import TransferTimeout, TransportError
from ckpt_transport.update import messages as m
from ckpt_transport.update.participant import Halted, Participant
from ckpt_transport.update.routes import Watch

TICK_SECONDS = 0.1


class State(enum.StrEnum):
    """How far a participant is. The value is what it says of itself."""

    INVITED = "waits for a plan"
    AGREED = "has agreed to a plan"
    OPEN = "has opened its routes"
    CONNECTED = "is connected"
    HELD = "holds its forward passes"
    STILL = "stands still"
    RAN = "has done its part"
    STOPPED = "has ended a round"
    COMMITTED = "has committed"


NEXT: Mapping[State, tuple[type[m.Order], ...]] = {
    State.INVITED: (m.Propose,),
    State.AGREED: (m.Open,),
    State.OPEN: (m.Connect,),
    State.CONNECTED: (m.Hold, m.Run),
    State.HELD: (m.Advance,),
    State.STILL: (m.Run,),
    State.RAN: (m.Commit,),
    State.STOPPED: (m.Propose, m.Commit),
    State.COMMITTED: (),
}
"""What may be said in each state, besides Halt and Abort, which may be said in all."""

LEADS_TO: Mapping[type[m.Order], State] = {
    m.Propose: State.AGREED,
    m.Open: State.OPEN,
    m.Connect: State.CONNECTED,
    m.Hold: State.HELD,
    m.Advance: State.STILL,
    m.Run: State.RAN,
    m.Commit: State.COMMITTED,
}

BRIEF = frozenset({State.INVITED, State.HELD, State.STILL, State.STOPPED})
"""States in which others have nothing to do that takes longer than to join, or to stand still."""


class Follower:
    """Does as the coordinator's orders say, and answers each.

    Args:
        update: its name.
        nonce: what the coordinator's orders carry.
        participant: this one.
        engine: of a sink; None of a source.
        timeout: for how long forward passes may take to stand still, in seconds; others have as long to join.
    """

    def __init__(
        self, update: str, nonce: str, participant: Participant, engine: Engine | None, timeout: float
    ) -> None:
        self.update = update
        self._nonce, self._participant, self._engine, self._timeout = nonce, participant, engine, timeout
        self._rank = -1
        self._round = self._stopped = -1
        self._resumable = self._standing = False
        self._enter(State.INVITED)

    @property
    def rank(self) -> int:
        """This participant's rank in the update, -1 before a plan was proposed."""
        return self._rank

    @property
    def state(self) -> State:
        """How far it is."""
        return self._state

    @property
    def applying(self) -> bool:
        """Whether the engine has been given a byte."""
        return self._participant.applying

    def revoke(self) -> bool:
        """Give the engine nothing from now on; return whether it was given a byte. From any thread."""
        return self._participant.revoke()

    def objection(self, order: m.Order) -> str:
        """Why ``order`` is not followed; empty when it is."""
        kind = type(order).__name__
        if order.update != self.update or not compare_digest(order.nonce.encode(), self._nonce.encode()):
            return f"{kind} is not from the coordinator of the update that this member takes part in"
        if isinstance(order, m.Halt | m.Abort):
            return ""
        if not isinstance(order, NEXT[self._state]) or not self._is_ready_for(order):
            return f"{kind} is out of order: this member {self._state}"
        return ""

    def check_patience(self) -> None:
        """
        Raises:
            TransferTimeout: the coordinator has not gone on in time.
        """
        if self._state in BRIEF and time.monotonic() > self._since + 2 * self._timeout:
            raise TransferTimeout(
                f"the coordinator did not go on within {2 * self._timeout:g} s, twice join_timeout, while this member "
                f"{self._state}"
            )

    def answer(self, order: m.Order, watch: Watch) -> Message | None:
        """Do what ``order`` asks for and return the answer; None when it needs none.

        Raises: whatever went wrong; the caller tells the coordinator.
        """
        if isinstance(order, m.Halt):
            return self._stop(order.round, Halted(order.reason), "")
        try:
            answer = self._do(order, watch)
        except Halted as halted:
            return self._stop(self._round, halted, "")
        except TransportError as error:
            if not self._resumable:
                raise
            return self._stop(self._round, error, f"{type(error).__name__}: {error}")
        self._enter(LEADS_TO[type(order)])
        return answer

    def _is_ready_for(self, order: m.Order) -> bool:
        match order:
            case m.Hold():
                return self._engine is not None
            case m.Run() if self._state is State.CONNECTED:
                return self._engine is None or self._standing
            case m.Commit():
                return self._engine is None or self._participant.complete
        return True

    def _enter(self, state: State) -> None:
        self._state, self._since = state, time.monotonic()

    def _stop(self, number: int, cause: BaseException, reason: str) -> Message | None:
        """End a round, once; it may be one whose plan has never come."""
        if number <= self._stopped:
            return None
        self._stopped = number
        has = list(self._participant.stop(cause))
        self._enter(State.STOPPED)
        return m.Stopped(self.update, self._rank, number, reason, has)

    def _do(self, order: m.Order, watch: Watch) -> Message | None:
        participant, engine = self._participant, self._engine
        match order:
            case m.Propose():
                self._rank, self._round, self._resumable = order.rank, order.round, order.resumable
                plan = participant.take(order)
                digest = participant.propose(
                    plan,
                    order.rank,
                    order.addresses,
                    order.routes,
                    resumable=order.resumable,
                    digests=order.digests,
                )
                return m.Agree(self.update, self._rank, digest, participant.digests(order.tied))
            case m.Open():
                return m.Opened(self.update, self._rank, participant.open(watch))
            case m.Connect():
                participant.connect(order.descriptors)
                return m.Connected(self.update, self._rank)
            case m.Hold() if engine is not None:
                self._standing = False
                return m.Held(self.update, self._rank, engine.hold())
            case m.Advance() if engine is not None:
                self._advance(engine, order.forwards, watch)
                self._standing = True
                return m.Still(self.update, self._rank)
            case m.Run():
                events = participant.run(watch)
                return m.Ran(self.update, self._rank, events, "" if engine is None else engine.told)
            case m.Commit():
                return m.Committed(self.update, self._rank, 0.0 if engine is None else engine.resume())
        return None

    def _advance(self, engine: Engine, forwards: int, watch: Watch) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                engine.advance(forwards, TICK_SECONDS)
                return self._participant.confirm()
            except TimeoutError:
                watch()
                if time.monotonic() > deadline:
                    raise
