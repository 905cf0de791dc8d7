"""A follower is a member's place in an update: it knows which order comes next, and when to give the coordinator up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from hmac import compare_digest

from ckpt_transport.engine.engine import Engine
from ckpt_transport.errors import TransferTimeout, TransportError
from ckpt_transport.events import step
from ckpt_transport.execution import Arrival
from ckpt_transport.reasons import named_reason
from ckpt_transport.update import messages as m
from ckpt_transport.update.following import Following
from ckpt_transport.update.participant import Halted, Participant
from ckpt_transport.update.protocol import State, exchange_of
from ckpt_transport.update.routes import Watch
from ckpt_transport.update.settlement import Standing

BRIEF = frozenset({State.INVITED, State.HELD, State.STILL, State.STOPPED, State.APPLIED, State.DECIDED})
"""States in which others have nothing to do that takes longer than to join, or to stand still."""
_STANDINGS = {State.APPLIED: Standing.APPLIED, State.DECIDED: Standing.DECIDED}


class Follower:
    """Does as the coordinator's orders say, and answers each.

    Args:
        update: its name.
        nonce: what the coordinator's orders carry.
        participant: this one.
        engine: of a sink; None of a source.
        timeout: for how long forward passes may take to stand still, in seconds; others have as long to join.
        deadline: seconds of the monotonic clock after which the update is given up, unless the coordinator says that it
            waits on purpose.
    """

    def __init__(
        self,
        update: str,
        nonce: str,
        participant: Participant,
        engine: Engine | None,
        timeout: float,
        deadline: float,
    ) -> None:
        self.update = update
        self._nonce, self._participant, self._timeout = nonce, participant, timeout
        self._steps = Following(update, participant, engine, timeout, deadline)
        self._stopped = -1
        self._enter(State.INVITED)

    @property
    def rank(self) -> int:
        """This participant's rank in the update, -1 before a plan was proposed."""
        return self._steps.rank

    @property
    def deadline(self) -> float:
        """Seconds of the monotonic clock after which the update is given up."""
        return self._steps.deadline

    @property
    def waits(self) -> bool:
        """Whether the version is staged, and the coordinator has said that it waits for its commit."""
        return self._steps.waits

    @property
    def state(self) -> State:
        """How far it is."""
        return self._state

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """How much has come here, and from whom."""
        return self._participant.arrivals

    @property
    def applying(self) -> bool:
        """Whether the engine has been given a byte of what it serves, and cannot take it back."""
        return self._participant.applying

    @property
    def standing(self) -> Standing:
        """How far this sink is in the commit of a staged update."""
        return _STANDINGS.get(self._state, Standing.UNKNOWN)

    @property
    def staged(self) -> str:
        """The word by which sinks of a staged update know each other; empty in other updates."""
        return self._participant.staged

    @property
    def restores(self) -> bool:
        """Whether this update brings the version before back, and stages nothing."""
        return self._participant.restores

    @property
    def sinks(self) -> Mapping[int, str]:
        """The addresses of all sinks of the update, by rank; none before a plan was proposed."""
        return self._participant.sinks

    def take_back(self) -> None:
        """Serve again what was served before, where what was staged has been applied."""
        self._participant.take_back()

    def revoke(self) -> bool:
        """Give the engine nothing from now on; return whether it was given a byte. From any thread."""
        return self._participant.revoke()

    def objection(self, order: m.AnyOrder) -> str:
        """Why ``order`` is not followed; empty when it is."""
        kind = type(order).__name__
        if order.update != self.update or not compare_digest(order.nonce.encode(), self._nonce.encode()):
            return f"{kind} is not from the coordinator of the update that this member takes part in"
        if self._state not in exchange_of(order).during or not self._steps.is_ready_for(order):
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

    def answer(self, order: m.AnyOrder, watch: Watch) -> m.Reply | None:
        """Do what ``order`` asks for and return the answer; None when it needs none.

        Raises: whatever went wrong; the caller tells the coordinator.
        """
        if isinstance(order, m.Halt):
            return self._stop(order.round, Halted(order.reason), "")
        try:
            with step(self.update, type(order).__name__.lower(), order.trace):
                answer = self._steps.follow(order, watch)
        except Halted as halted:
            return self._stop(self._steps.round, halted, "")
        except TransportError as error:
            if not self._steps.resumable:
                raise
            return self._stop(self._steps.round, error, named_reason(error))
        then = exchange_of(order).then
        assert then is not None, "an abort is not answered here"
        self._enter(self._agreed if then is State.AGREED else then)
        return answer

    @property
    def _agreed(self) -> State:
        """How far a member is that has just agreed to a plan."""
        if self._steps.is_connected:
            return State.CONNECTED
        return State.OPEN if self._steps.is_open else State.AGREED

    def _enter(self, state: State) -> None:
        self._state, self._since = state, time.monotonic()

    def _stop(self, number: int, cause: BaseException, reason: str) -> m.Reply | None:
        """End a round, once; it may be one whose plan has never come."""
        if number <= self._stopped:
            return None
        self._stopped = number
        has = list(self._participant.stop(cause))
        self._enter(State.STOPPED)
        return m.Stopped(self.update, number, reason, has)
