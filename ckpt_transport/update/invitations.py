"""Invitations gather those who take part in an update.

A sink or a holder takes part in one update at a time, and says Busy to the coordinators of others, which invite it
again. Two coordinators that want the same ones would wait for each other if each had got one of them. So all have one
order, that of the addresses at which the invited listen: a coordinator that waits for one gives back those behind it,
and invites them again when it has got it. Whoever has the first of them gets all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox
from ckpt_transport.control.messages import Refused
from ckpt_transport.decoding import UNREADABLE
from ckpt_transport.errors import ConfigError, JoinError, MessageError
from ckpt_transport.planning import Role
from ckpt_transport.update import messages as m
from ckpt_transport.update.challenges import Welcomes
from ckpt_transport.update.introduction import with_share
from ckpt_transport.update.membership import TICK_SECONDS, Membership
from ckpt_transport.update.source_arrivals import SourceArrivals, ToldSources

BUSY_SECONDS, INVITE_SECONDS = 0.01, 0.25
"""How often one that is busy with another update is invited again: at first, and when that takes long. What it is busy
with has mostly ended when it has said so."""
SILENT_SECONDS = 2.0
"""How often one is invited again of whom nothing was heard: on a busy host its challenge may not have arrived."""
SOON_SECONDS = 0.05
"""Other sources that have not come by then are told elsewhere where the coordinator is."""
TELL_SECONDS = 5.0
"""After so long it is said who is waited for."""
logger = logging.getLogger(__name__)


def _no_objection(join: m.Join) -> str:
    """The objection of who lets anybody take part."""
    return ""


def _to_nobody() -> None:
    """The announcement of who has no other sources."""


def _nobody(patience: float) -> Sequence[str]:
    """Who is known to be gone where nobody but this fleet knows of its sinks."""
    return ()


@dataclass(frozen=True, slots=True)
class Invitees:
    """Names who is to take part in an update.

    Attributes:
        sources: how many source ranks there are, rank 0 included; the others come by themselves.
        sinks: addresses of sinks to invite; all must come.
        holders: addresses of holders of the version to invite; who does not come is left out, so long as one does.
        objection: why a holder that has come may not take part; empty when it may.
        expectation: why there are other sources, in words.
        base, base_updates: what sinks must serve, and the update that has brought it, by address where that is known;
            see :class:`~ckpt_transport.update.joining_messages.Invite`.
        delta, deltas_follow: what comes is a difference to the base, or the version may be the base of one.
        announce: tells other sources where the coordinator is; called when all others are invited.
        announce_to_late: tells those that have not heard that; called once, where some have not come soon.
        absent: source ranks that have said elsewhere that they do not come, and why; must not wait for long.
        given_up: other versions, to which this coordinator has ended updates, and why; sources may still come for
            them.
        told: what other sources know of updates that have failed.
        silent: sinks that were asked before, and have not answered for ``join_timeout``; they are given
            ``heartbeat_timeout`` more.
        gone: sinks of which it is known elsewhere that they are gone, and why, a clause for each; may wait for as many
            seconds as it is given.
    """

    sources: int
    sinks: tuple[str, ...]
    holders: tuple[str, ...] = ()
    objection: Callable[[m.Join], str] = _no_objection
    expectation: str = ""
    base: str = ""
    base_updates: Mapping[str, str] = field(default_factory=dict)
    delta: bool = False
    deltas_follow: bool = False
    announce: Callable[[], None] = _to_nobody
    announce_to_late: Callable[[], None] = _to_nobody
    absent: Callable[[], Mapping[int, str]] = dict
    given_up: Mapping[str, str] = field(default_factory=dict)
    told: ToldSources = field(default_factory=ToldSources)
    silent: Collection[str] = ()
    gone: Callable[[float], Sequence[str]] = _nobody


@dataclass(slots=True)
class Invitations:
    """Invites, and waits until everybody is there.

    Attributes:
        staged: sinks are asked whether they can stage the version.
        meanwhile: called once all are invited, and look what they have; returns rank 0's introduction, where that
            becomes known then.
        welcomes: what those invited may have said for this invitation.
        reached: addresses of all who have heard of the update.
    """

    members: Membership
    mailbox: Mailbox
    config: Config
    invitees: Invitees
    welcomes: Welcomes = field(default_factory=Welcomes)
    staged: bool = False
    meanwhile: Callable[[], m.Join | None] = lambda: None
    reached: list[str] = field(default_factory=list)
    _invites: dict[str, m.Invite] = field(default_factory=dict)
    _invited: dict[str, tuple[str, m.Join]] = field(default_factory=dict)
    _at: dict[str, str] = field(default_factory=dict)
    """Where each process was invited last, by its uid."""
    _busy: dict[str, str] = field(default_factory=dict)
    _out: dict[str, str] = field(default_factory=dict)
    _given_back: dict[str, str] = field(default_factory=dict)
    """Those that wait for their turn: where they listen, by the address at which they are invited."""
    _let_go: set[str] = field(default_factory=set)
    """Where those listen that were given back and have not said yet that they have left: they may say first, on another
    connection, that they are busy elsewhere."""
    _order: dict[str, str] = field(default_factory=dict)
    """Where those listen that are busy, by the address at which they are invited."""
    _sources: SourceArrivals = field(init=False)

    def __post_init__(self) -> None:
        self._sources = SourceArrivals(self.members, self.mailbox, self.invitees, self.reached)

    def gather(self, myself: m.Join) -> None:
        """Fill in the members: rank 0 itself, the other sources, holders, sinks.

        Raises:
            SupersededError: a newer update takes the place of this one.
            JoinError: somebody who must come has not come within ``join_timeout``; names all of them.
            ConfigError: two of the sinks are the same one.
            CkptTransportError: what a participant reported instead.
        """
        assert myself.manifest is not None
        version, transports = myself.manifest.version, (*myself.transports, *myself.unavailable)
        everybody = (*self.invitees.holders, *self.invitees.sinks)

        self.mailbox.bring_back()
        self._sources.begin(myself)
        self.reached.extend(everybody)
        self.members.nonces.update(self.welcomes.take(everybody))
        self.welcomes.shares.begin()
        for address in everybody:
            self._invites[address] = m.Invite(
                self.members.update,
                version,
                address,
                transports,
                self.staged,
                self.invitees.base,
                self.invitees.base_updates.get(address, ""),
                self.invitees.delta,
                self.invitees.deltas_follow,
            )
            self._invite(address)
        self.invitees.announce()
        known_now = self.meanwhile()
        if known_now is not None:
            self._sources.begin(known_now)
        deadline = time.monotonic() + self.config.join_timeout
        began = time.monotonic()
        look_again, ask_silent, tell = began + INVITE_SECONDS, began + SILENT_SECONDS, began + TELL_SECONDS
        ask_busy, patience = began + BUSY_SECONDS, BUSY_SECONDS
        announce = began + SOON_SECONDS
        without_stragglers = float("inf")
        while not self._complete or self._sources.is_left:
            self.members.turn.check()
            self.members.looked()
            due = ask_busy - time.monotonic() if self._busy or self._given_back else TICK_SECONDS
            received = self.mailbox.receive(min(max(due, 0.0), TICK_SECONDS))
            if received is not None:
                self._handle(*received)
                self._give_back_those_behind()
            now = time.monotonic()
            if now > announce and self._sources.missing:
                self.invitees.announce_to_late()
                announce = float("inf")
            if now > look_again:
                self._sources.check_absent()
                self._check_sinks()
                look_again = now + INVITE_SECONDS
            if now > ask_busy:
                for address in self._due_again():
                    self._invite(address)
                patience = min(2 * patience, INVITE_SECONDS)
                ask_busy = now + patience
            if now > ask_silent:
                for address in self._silent():
                    self._invite(address)
                ask_silent = now + SILENT_SECONDS
            if now > tell:
                if deadline - now > 1:
                    missing = [self._busy.get(address, address) for address in self._missing()]
                    why = f"; {self.invitees.expectation}" if self._sources.missing else ""
                    logger.warning("waiting up to %.0f s more for %s%s", deadline - now, ", ".join(missing), why)
                tell = float("inf")
            if self._enough():
                without_stragglers = min(without_stragglers, now + self.config.heartbeat_timeout)
            if now > began + self.config.heartbeat_timeout and (dead := self._still_silent()):
                self._give_up_on(dead)
            if now > min(deadline, without_stragglers):
                self._give_up_on(self._missing())
        self._fill_in_members()

    def _invite(self, address: str) -> None:
        self.members.order(address, self._invites[address])

    def _handle(self, sender: str, message: object) -> None:
        update, nonces = self.members.update, self.members.nonces
        match message:
            case m.Challenge(update=name, address=address, nonce=nonce) if name == update and address in self._invites:
                nonces[address] = nonce
                self._invite(address)
            case m.Join(role=Role.SOURCE, invited=""):
                self._sources.admit(sender, message)
            case m.Join(update=name) if name == update:
                if not message.nonce or message.nonce != nonces.get(message.invited):
                    self.mailbox.refuse(f"nobody has invited {message.label}", name)
                    return
                try:
                    message = with_share(message, self.welcomes.shares)
                except UNREADABLE as error:
                    self.mailbox.refuse(f"what {message.label} needs cannot be read: {error}", name)
                    return
                self._check_once(sender, message)
                self._let_go.discard(sender)
                nonces[sender] = message.nonce
                objection = self.invitees.objection(message) if message.role is Role.SOURCE else ""
                for waiting in (self._busy, self._order, self._given_back):
                    waiting.pop(message.invited, None)
                if objection:
                    self._out[message.invited] = objection
                else:
                    self._invited[message.invited] = sender, message
                    self.mailbox.watch(sender)
            case m.Busy(update=name, address=address, reason=reason) if name == update:
                self._check_not_here(sender, address)
                self._busy[address], self._order[address] = reason, sender
                self._given_back.pop(address, None)
            case m.Aborted(update=""):
                self._sources.withdraw(sender, message)
            case m.Aborted(update=name) if name == update and sender in self._let_go:
                self._let_go.discard(sender)
            case m.Aborted(update=name, reason=reason) if name == update:
                self._leave_out(sender, reason)
            case m.Absent():
                self._sources.check_notice(sender, message)
            case Refused(about=about, reason=reason) if sender in self._invites and about in ("", update):
                raise MessageError(f"{sender} could not be talked to: {reason}")
            case m.Failed(update=name) if name == update:
                if sender not in self.invitees.holders:
                    raise self.members.rebuilt(message, sender)
                self._out[sender] = message.reason

    def _check_once(self, sender: str, join: m.Join) -> None:
        """Nobody is invited under two addresses."""
        address = self._at.setdefault(join.uid, join.invited)
        if address != join.invited and address in self._invited:
            self._refuse_twice(address, join.invited, sender, join.label)
        self._at[join.uid] = join.invited

    def _check_not_here(self, sender: str, address: str) -> None:
        """Nobody is busy with this very update, because it has been invited under another address, too."""
        for other, (known, join) in self._invited.items():
            if other != address and known == sender:
                self._refuse_twice(other, address, sender, join.label)

    def _refuse_twice(self, one: str, other: str, sender: str, label: str) -> None:
        raise ConfigError(f"{one} and {other} are the same one, {label} at {sender}: name it once")

    def _give_back_those_behind(self) -> None:
        """Let others have who listens behind the first that is waited for, until it has come."""
        if not self._order:
            return
        first = min(self._order.values())
        for address, (sender, _) in list(self._invited.items()):
            if sender > first:
                del self._invited[address]
                self._given_back[address] = sender
                self._let_go.add(sender)
                self.members.order(sender, m.Abort(self.members.update, f"{first} takes part in another update first"))

    def _due_again(self) -> list[str]:
        """Who is invited again: the busy, and those given back whose turn it is."""
        first = min(self._order.values(), default="")
        return [*self._busy, *(address for address, at in self._given_back.items() if not first or at < first)]

    def _silent(self) -> list[str]:
        """Who was invited and has not come, nor said why not."""
        heard = self._invited.keys() | self._busy.keys() | self._given_back.keys() | self._out.keys()
        return [address for address in self._invites if address not in heard]

    def _leave_out(self, sender: str, reason: str) -> None:
        """Somebody that had come has left: a holder is left out, and nobody else."""
        address = next((invited for invited, (address, _) in self._invited.items() if address == sender), sender)
        if address not in self.invitees.holders:
            raise JoinError(f"{address} has left while others were waited for: {reason}")
        self._invited.pop(address, None)
        self._out[address] = reason

    def _check_sinks(self) -> None:
        """
        Raises:
            JoinError: a sink that is waited for is known to be gone.
        """
        for why in self.invitees.gone(0.0):
            raise JoinError(why)

    @property
    def _complete(self) -> bool:
        """Whether nobody is waited for. It is asked after each message, and looks no further than to the first."""
        if self._sources.missing:
            return False
        awaited = chain(self.invitees.sinks, self.invitees.holders)
        return all(address in self._invited or address in self._out for address in awaited)

    def _missing(self) -> list[str]:
        """Who is still waited for, by address."""
        missing = [f"source rank {rank}" for rank in self._sources.missing]
        awaited = (*self.invitees.sinks, *self.invitees.holders)
        return missing + [address for address in awaited if address not in self._invited and address not in self._out]

    def _still_silent(self) -> list[str]:
        """Sinks that were silent before, and have said nothing yet."""
        silent = self.invitees.silent
        heard = {*self._busy, *self._given_back}
        return [each for each in self._missing() if each in silent and each not in heard] if silent else []

    def _enough(self) -> bool:
        """Whether only holders are missing, and there is one."""
        holders = self.invitees.holders
        return any(holder in self._invited for holder in holders) and set(self._missing()) <= set(holders)

    def _give_up_on(self, missing: list[str]) -> None:
        if set(missing) <= set(self.invitees.holders):
            self._out.update({address: self._busy.get(address, "it does not answer") for address in missing})
            return
        named = [self._busy.get(address, address) for address in missing if address not in self._given_back]
        silent = any(address not in self._busy and address not in self._given_back for address in missing)
        cure = "is it running, and is the address right?" if silent else "update again when that has ended"
        if silent and any(address.startswith("tcp") for address in missing):
            cure = "is it running, is the address right, and is the secret_file the same there?"
        if self._sources.missing:
            cure = self.invitees.expectation
        raise JoinError(f"did not join within {self.config.join_timeout:g} s: {', '.join(named)}; {cure}")

    def _fill_in_members(self) -> None:
        invitees = self.invitees
        holders = [address for address in invitees.holders if address in self._invited]
        if invitees.holders and not holders:
            reasons = "; ".join(f"{address}: {reason}" for address, reason in self._out.items())
            raise JoinError(
                f"no holder can serve this version ({reasons}); start one with 'ckpt-transport serve', and use the "
                "file that it writes"
            )
        came = self._sources.in_order()
        came += [self._invited[address] for address in (*holders, *invitees.sinks)]
        for address, join in came:
            self.members.admit(address, join)
        self.members.left.update({address: f"holder at {address}: {why}" for address, why in self._out.items()})
