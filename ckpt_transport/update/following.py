"""A member's side of each step of an update: what it does when it is asked."""

from __future__ import annotations

import time

from ckpt_transport.engine import Engine
from ckpt_transport.execution import encode_events
from ckpt_transport.update import messages as m
from ckpt_transport.update.participant import Participant
from ckpt_transport.update.routes import Watch

TICK_SECONDS = 0.1


class Following:
    """Follows each step: does what one order asks for, and makes the answer.

    Args:
        update: the name of the update.
        participant: this member's part in it.
        engine: of a sink; None of a source.
        timeout: for how long forward passes may take to stand still, in seconds.
        deadline: seconds of the monotonic clock after which the update is given up.

    Attributes:
        deadline: as the coordinator has said last.
        waits: the version waits for its commit.
        rank: this member's in the plan; -1 before one was proposed.
        round: which plan of the update the last one was; -1 before there was one.
        resumable: the update goes on when members leave.
        is_open, is_connected: this member has opened its routes when it agreed to the plan, and connected them.
        standing: no forward pass runs, and none may start.
        stopping: for how many seconds that was waited for.
        decided: all sinks have applied what they had staged.
    """

    def __init__(
        self, update: str, participant: Participant, engine: Engine | None, timeout: float, deadline: float
    ) -> None:
        self.deadline, self.waits = deadline, False
        self._update, self._participant, self._engine, self._timeout = update, participant, engine, timeout
        self.rank = self.round = -1
        self.stopping = 0.0
        self.resumable = self.is_open = self.is_connected = self.standing = self.decided = False

    def is_ready_for(self, order: m.AnyOrder) -> bool:
        """Whether an order that comes in its turn makes sense here: a sink runs only while its passes are held."""
        match order:
            case m.Hold() | m.Stand():
                return self._engine is not None and self._participant.complete == bool(self._participant.staged)
            case m.StandAndRun():
                return self._engine is not None and not (self._participant.complete or self._participant.staged)
            case m.Run():
                return self._engine is None or self.standing or bool(self._participant.staged)
            case m.Apply() | m.Keep():
                return self._participant.complete and bool(self._participant.staged)
            case m.Dismiss():
                return not (self.standing or self._participant.applying)
            case m.Commit() if self._engine is not None:
                return self.decided if self._participant.staged else self._participant.complete
        return True

    def follow(self, order: m.AnyOrder, watch: Watch) -> m.Reply | None:
        """Do what ``order`` asks for and return the answer; None when nothing is done.

        Raises: whatever went wrong.
        """
        update, participant, engine = self._update, self._participant, self._engine
        match order:
            case m.Propose():
                self.rank, self.round, self.resumable = order.rank, order.round, order.resumable
                plan = participant.take(order.plan, order.shape, order.version)
                digest = participant.propose(
                    plan,
                    order.rank,
                    order.addresses,
                    order.routes,
                    resumable=order.resumable,
                    digests=order.digests,
                    staged=order.staged,
                )
                self.is_open = participant.has_its_routes
                lent = participant.open(watch) if self.is_open else None
                self.is_connected = self.is_open and order.lent is not None
                if self.is_connected and order.lent is not None:
                    participant.connect(order.lent, watch, order.lent_name)
                elif self.is_open and participant.connect_by_name(order.lent_name, watch):
                    self.is_connected, lent = True, None
                return m.Agree(update, digest, participant.digests(order.tied), lent, connected=self.is_connected)
            case m.Restore():
                self.rank = order.rank
                participant.restore(order.sinks, order.staged)
                return m.Restorable(update)
            case m.Open():
                return m.Opened(update, participant.open(watch))
            case m.Connect():
                participant.connect(order.descriptors, watch, order.name)
                return m.Connected(update)
            case m.Hold() if engine is not None:
                self.standing = False
                return m.Held(update, engine.hold())
            case m.Stand() if engine is not None:
                self._stand(engine, engine.hold(), watch)
                return m.Still(update)
            case m.Advance() if engine is not None:
                self._stand(engine, order.forwards, watch)
                return m.Still(update)
            case m.Run():
                events = encode_events(participant.run(watch))
                return m.Ran(update, events, "" if engine is None else engine.apply_summary, self.stopping)
            case m.Keep():
                self.deadline, self.waits = time.monotonic() + order.seconds, True
                return m.Kept(update)
            case m.Apply():
                participant.exchange()
                return m.Applied(update)
            case m.Decide():
                self.decided = True
                return m.Decided(update)
            case m.Commit():
                return m.Committed(update, 0.0 if engine is None else engine.resume())
            case m.Dismiss():
                participant.dismiss()
                return m.Dismissed(update)
        return None

    def _stand(self, engine: Engine, forwards: int, watch: Watch) -> None:
        self.standing = False
        began = time.monotonic()
        deadline = began + self._timeout
        while not self.standing:
            try:
                engine.advance(forwards, TICK_SECONDS)
                self.stopping = time.monotonic() - began
                self._participant.confirm()
                self.standing = True
            except TimeoutError:
                watch()
                if time.monotonic() > deadline:
                    raise
