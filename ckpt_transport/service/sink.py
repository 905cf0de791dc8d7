"""A sink answers invitations, follows an update, and says which version its engine serves."""

from __future__ import annotations

from collections import deque

from ckpt_transport.config import Config
from ckpt_transport.control import Message, addresses
from ckpt_transport.engine.engine import Engine
from ckpt_transport.errors import CkptTransportError, PeerLostError
from ckpt_transport.service import questions as q
from ckpt_transport.service.claims import ClaimRecord
from ckpt_transport.service.listener import Listener
from ckpt_transport.update import messages as m
from ckpt_transport.update.follower import Follower
from ckpt_transport.update.introduction import States
from ckpt_transport.update.participant import Participant


class Sink(Listener):
    """Makes one engine updatable at an address. Drive it with :meth:`start` (own thread) or :meth:`serve` (yours).

    Args:
        engine: the way into the engine.
        address: where it can be invited; empty for a new address that only this user can reach.
        version: what the engine serves now.
        config: deadlines, budget and secret; by default from the environment.

    Attributes:
        claim: who drives the engine from outside.
    """

    _kind = "sink"

    def __init__(self, engine: Engine, address: str = "", version: str = "", config: Config | None = None) -> None:
        super().__init__(address, config)
        self._engine = engine
        self._version, self._tainted = version, ""
        self.claim = ClaimRecord()
        self._announcing: deque[str] = deque()
        self._announced = ""

    @property
    def label(self) -> str:
        """What people call this sink."""
        return self._engine.label

    @property
    def version(self) -> str:
        """The version that is served; of a tainted sink, the one it served last."""
        return self._version

    @property
    def tainted(self) -> str:
        """Why this sink must not serve; empty when it may."""
        return self._tainted

    def announce(self, address: str) -> None:
        """Tell the mailbox at ``address`` where this sink is and what it serves; from any thread."""
        self._call_guard.check()
        self._announcing.append(addresses.check(address))

    def _refuses(self, invite: m.Invite) -> str:
        try:
            self._engine.begin()
        except CkptTransportError as error:
            return f"{self.label}: {error}"
        except Exception as error:
            return f"{self.label} cannot be looked at: {type(error).__name__}: {error}"
        return ""

    def _follow(self, invite: m.Invite, deadline: float) -> Follower:
        participant = Participant(self._mailbox, self._table, self._plans, (), self._engine, deadline)
        return Follower(invite.update, invite.nonce, participant, self._engine, self.config.join_timeout)

    def _introduce(self, states: States) -> m.Join:
        return self._introducer.of_sink(self._engine, states, self._table.names, self._plans)

    def _served(self) -> q.ServedVersion:
        return q.ServedVersion(
            self._engine.label,
            self._version,
            self._tainted,
            "" if self._watchdog.stuck else self._target_version,
            self._engine.group,
            self._watchdog.stuck,
        )

    def _committed(self) -> None:
        self._engine.certify()
        self._check_not_given_up()
        self._version, self._tainted = self._target_version, ""

    def _given_up(self, follower: Follower, reason: BaseException) -> bool:
        """The old version goes on, unless a byte of the new one is in."""
        if follower.applying:
            self._tainted = f"an update to '{self._target_version}' failed half-way: {reason}"
            self._engine.taint(self._tainted)
        if not self._tainted:
            self._engine.resume()
        return bool(self._tainted)

    def _answers(self, sender: str, message: Message) -> bool:
        match message:
            case q.Claim():
                self._forget_silent_holder()
                self._mailbox.answer(self.claim.take(sender, message))
                if self.claim.holder == sender:
                    self._mailbox.watch(sender)
            case q.Release():
                if self.claim.holder == sender:
                    self._forget_holder()
            case _:
                return super()._answers(sender, message)
        return True

    def _forget_silent_holder(self) -> None:
        """Whoever has driven the engine and shows no sign of life drives it no more."""
        try:
            self._mailbox.check_alive([self.claim.holder] if self.claim.holder else [])
        except PeerLostError:
            self._forget_holder()

    def _forget_holder(self) -> None:
        self._mailbox.forget(self.claim.holder)
        self.claim.release()

    def _given_up_elsewhere(self, follower: Follower, reason: str) -> bool:
        if follower.revoke():
            self._tainted = f"an update to '{self._target_version}' failed half-way: {reason}"
        self._engine.give_up(self._tainted)
        return bool(self._tainted)

    def _between(self) -> None:
        self._forget_silent_holder()
        while self._announcing:
            address = self._announcing.popleft()
            if self._announced not in ("", address, self._coordinator):
                self._mailbox.forget(self._announced)
            self._announced = address
            self._mailbox.send(address, q.Here(self.address, self._served()))
