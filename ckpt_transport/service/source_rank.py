"""One source rank's side of updates: where it is, which routes it keeps open, and how it meets the other ranks."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec

from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, addresses
from ckpt_transport.errors import CkptTransportError, ConfigError
from ckpt_transport.events import speaking_for
from ckpt_transport.history import check_history
from ckpt_transport.memory import Backing, uninterrupted
from ckpt_transport.planning import ServedShares
from ckpt_transport.reasons import named_reason
from ckpt_transport.service import questions as q
from ckpt_transport.service.absences import Absences
from ckpt_transport.service.base import BroughtVersions
from ckpt_transport.service.calls import Called, Caller
from ckpt_transport.service.late_sources import LateSources
from ckpt_transport.service.lead_tokens import LeadTokens
from ckpt_transport.service.led_update import FollowedStaged, Leader, LedUpdate
from ckpt_transport.service.other_sources import OtherSources
from ckpt_transport.service.rendezvous import AtAddress, InStore, Rendezvous
from ckpt_transport.service.sink_handles import LocatedSinks
from ckpt_transport.service.source_watch import SourceWatch
from ckpt_transport.service.staged_job import StagedJob
from ckpt_transport.service.trace import check_trace
from ckpt_transport.service.world import World
from ckpt_transport.transports import registry
from ckpt_transport.update import messages as m
from ckpt_transport.update.available import check, states
from ckpt_transport.update.challenges import Welcomes
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.held_manifests import ManifestEncoder
from ckpt_transport.update.introduction import NOTHING_ASKED, Introducer, shortened
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.mailbox import Rotation, open_mailbox
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport.update.report import Report
from ckpt_transport.update.routes import RouteNames, RouteTable
from ckpt_transport.update.source import EVERYTHING, FollowingSource, Offer
from ckpt_transport.update.source_arrivals import ToldSources
from ckpt_transport.update.turn import Turn

Result = TypeVar("Result")
Versions = Callable[[str, ServedShares], StoredVersion]
"""What a rank brings: its difference to what an update of that name has brought, as sinks serve it, or everything."""
FRESH_SECONDS = 1.0
"""What a rank has prepared to say of itself counts for so long."""
logger = logging.getLogger(__name__)


class SourceRank:
    """Leads updates as rank 0, and follows them as any other. What it opens it keeps until :meth:`let_go`.

    Args:
        world: the ranks of the source, and which of them this is.
        config: settings.

    Attributes:
        brought: which version sinks got last from here.
        absences: tells the other ranks of which updates this one takes no part.
        mailbox: this rank's, once it has taken part in an update.
    """

    def __init__(self, world: World, config: Config) -> None:
        self._world, self._config = world, config
        self._introducer, self._nonce = Introducer(config), secrets.token_hex(16)
        self._held = ManifestEncoder()
        self.mailbox: Mailbox | None = None
        self._table: RouteTable | None = None
        self._rotation: Rotation | None = None
        self._names, self._welcomes = RouteNames(), Welcomes()
        self._plans = PlanCache(config.memory_budget)
        self._partners: dict[str, str] = {}
        """Sinks of the last update, and the nonce that what is said to each carries."""
        self._caller, self._called, self._tokens = Caller(), Called(), LeadTokens()
        self.brought = BroughtVersions()
        self._told = ToldSources()
        self._late = LateSources(self._told)
        self._following: FollowingSource | None = None
        self._rendezvous = self._meet() if world.size > 1 else None
        self.absences = Absences(self._rendezvous)
        self._asked, self._leads = self.absences.asked, False
        self._watch = SourceWatch(self._label, config.heartbeat_timeout)

    def lead(
        self,
        stored: StoredVersion,
        invitees: Invitees,
        leader: type[Leader],
        clock: PhaseClock,
        turn: Turn,
        announce: Callable[[str], None] = lambda address: None,
        options: Mapping[str, str] = NOTHING_ASKED,
    ) -> LedUpdate[Leader]:
        """Begin to lead one update.

        Args:
            stored: what is brought.
            invitees: who takes part.
            leader: leads it.
            clock: of the caller's call.
            turn: of the update.
            announce: tells the other source ranks where this one is.
            options: what they must ask for alike.
        """
        check(self._config)
        check_trace(self._config)
        check_history(self._config.history)
        invited = invitees.sinks
        mailbox, table = self._open(invited)
        for address in invited:
            mailbox.check(address)
        for address in self._partners.keys() - set(invited):
            mailbox.send(address, m.Goodbye(nonce=self._partners.pop(address)))
            mailbox.forget(address)
        update = secrets.token_hex(8)
        coordinator = leader(
            update,
            mailbox,
            self._config,
            table,
            self._names,
            self._plans,
            stored.extents,
            clock,
            turn,
            self._welcomes,
        )
        join = self._join(update, table, stored, options)
        content = None if invitees.base and not invitees.delta else stored.content
        invitees = replace(
            invitees,
            announce=partial(self._announce, announce, mailbox),
            announce_to_late=partial(announce, mailbox.address),
        )
        return LedUpdate(coordinator, join, invitees, content, self.brought, self._has_led, self._watch, self._config)

    def _has_led(self, sinks: Sequence[str], coordinator: Coordinator) -> None:
        known = {**self._partners, **coordinator.nonces}
        self._partners = {address: known.get(address, "") for address in sinks}
        self._caller.fellows = {address: coordinator.nonces[address] for address in coordinator.fellows}

    def _announce(self, announce: Callable[[str], None], mailbox: Mailbox) -> None:
        """Tell the other source ranks where this one is. Those of the last update are called, and come at once."""
        if self._leads and self._rendezvous is not None and self._rendezvous.needs_calls:
            self._caller.call(mailbox)
        if not self._caller.calls(self._world.size - 1):
            announce(mailbox.address)

    def leading(self, version: str) -> AbstractContextManager[Callable[[str], None]]:
        """Within the block this rank leads an update to ``version``; the result tells the other ranks where it is."""
        if self._rendezvous is None:
            return nullcontext(lambda address: None)
        return self._leading(version, self._rendezvous)

    @contextmanager
    def _leading(self, version: str, meeting: Rendezvous) -> Iterator[Callable[[str], None]]:
        if self.mailbox is not None:
            self._late.end(self.mailbox)
        self._told.begin(version)
        self._leads, self._caller.lead = True, (version, token := self._tokens.next())
        try:
            with meeting.leading(version, self._asked.given_up_before(version), token) as announce:
                yield announce
        except BaseException as error:
            self._leads = False
            self._caller.call_off()
            self._gives_up(version, named_reason(error), also_unheard=isinstance(error, Exception))
            raise
        self._leads = False
        self._asked.goes_on(version)

    def _gives_up(self, version: str, reason: str, *, also_unheard: bool) -> None:
        """Rank 0 brings a version not: those that come for it now, or have just come, hear why."""
        self._asked.gives_up(version, reason)
        if self.mailbox is None and also_unheard and self._config.coordinator:
            with suppress(CkptTransportError):
                self._open([self._config.coordinator])
        if self.mailbox is not None and not self._leads and len(self._told.heard[version]) < self._world.size - 1:
            given_up = {**self._asked.given_up_before(version), version: reason}
            self._late.answer(self.mailbox, given_up, self._config.update_timeout)

    def alone_to(self, sinks: LocatedSinks) -> Invitees:
        """Who takes part in what needs no other source rank: these sinks."""
        return Invitees(1, sinks.addresses, gone=sinks.gone)

    def invitees(self, version: str, sinks: LocatedSinks) -> Invitees:
        """Who takes part in an update to ``version``: these sinks, and the other source ranks."""
        meeting = self._rendezvous
        if meeting is None:
            return self.alone_to(sinks)
        return replace(
            self.alone_to(sinks),
            sources=self._world.size,
            expectation=self._world.expectation,
            absent=lambda: meeting.absent(version),
            given_up=self._asked.given_up_before(version),
            told=self._told,
        )

    def others(
        self, version: str, invitees: Invitees, turn: Turn, announce: Callable[[str], None]
    ) -> OtherSources | None:
        """The other source ranks, as rank 0 hears them before it leads an update; None where there are none."""
        if invitees.sources == 1:
            return None
        mailbox, _ = self._open(invitees.sinks)
        self._announce(announce, mailbox)
        announce(mailbox.address)
        return OtherSources(mailbox, invitees, version, turn, self._config.join_timeout)

    def follow(self, version: str, versions: Versions, holds: str, options: Mapping[str, str]) -> str:
        """Take part in an update that rank 0 leads.

        Args:
            version: what it brings.
            versions: what this rank has of it.
            holds: the update that has brought what this rank can compare it with; empty for none.
            options: what all source ranks must ask for alike.

        Returns: the name of the update.
        """
        with self._taking_part(version):
            member = self._member(version, versions, holds, options)
            with self._watch.over(member):
                member.commit()
            self._called.took_part(member.nonce)
            return member.update

    def follow_staging(
        self,
        version: str,
        versions: Versions,
        holds: str,
        options: Mapping[str, str],
        job: StagedJob[Report],
        ended: Callable[[str], None],
    ) -> None:
        """Take part in an update that rank 0 leads, until it waits for its commit.

        Args:
            version, versions, holds, options: as those of :meth:`follow`.
            job: goes on with it.
            ended: as that of :class:`FollowedStaged`.
        """
        with self._taking_part(version):
            job.stage(FollowedStaged(self._member(version, versions, holds, options), self._watch, ended))

    @contextmanager
    def _taking_part(self, version: str) -> Iterator[None]:
        """Within the block this rank follows rank 0, which hears of an interrupt that comes before it has joined."""
        self.absences.take_back(version)
        self.absences.say_given_up(version)
        self._following = None
        with speaking_for(self._label):
            try:
                yield
            except Exception:
                if self._following is not None or (self._rendezvous and self._rendezvous.has_met(version)):
                    self._asked.goes_on(version)  # rank 0 knows
                raise
            except BaseException as interrupt:
                if self._following is None or not self._following.joined:
                    self.absences.be_absent(version, interrupt, "it was interrupted before it joined")
                raise
            finally:
                self._following = None  # it has what it has brought
        self._asked.goes_on(version)

    def _member(self, version: str, versions: Versions, holds: str, options: Mapping[str, str]) -> FollowingSource:
        assert self._rendezvous is not None, "a rank above 0 is not alone"
        nonce = secrets.token_hex(16)  # so that nothing said in an update of before counts in this one

        def offer(table: RouteTable, base_update: str = "", served: ServedShares = EVERYTHING) -> Offer:
            stored = versions(base_update, served)
            join = shortened(self._join("", table, stored, options), self._held)
            return stored.extents, msgspec.structs.replace(join, holds=holds, nonce=nonce)

        before, made_at = self._table, time.monotonic()
        first = None if before is None else offer(before)
        coordinator = self._called.find(version, self._rendezvous, self.mailbox, self.absences.told)
        mailbox, table = self._open([coordinator])
        if first is None or table is not before or time.monotonic() - made_at > FRESH_SECONDS:
            first = offer(table)
        self._following = FollowingSource(
            mailbox, table, self._plans, coordinator, first, partial(offer, table), self._config.update_timeout
        )
        return self._following

    def _join(self, update: str, table: RouteTable, stored: StoredVersion, options: Mapping[str, str]) -> m.Join:
        rank, runnable = self._world.rank, states(self._config)
        join = self._introducer.of_source(
            self._label, stored.manifest, runnable, table.names, self._plans, rank, options
        )
        return msgspec.structs.replace(join, update=update, nonce=self._nonce)

    # -- where everybody is -------------------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        return f"source {self._world.rank}"

    def listen(self) -> str:
        """Open the mailbox at the configured ``coordinator``, and tell its address, with the port that it got.

        Raises:
            ConfigError: there is no ``coordinator``.
        """
        if not self._config.coordinator:
            raise ConfigError("set 'coordinator' to where source rank 0 is to listen; tcp://HOST:0 takes any free port")
        mailbox, _ = self._open([self._config.coordinator])
        return mailbox.address

    def _open(self, peers: Sequence[str]) -> tuple[Mailbox, RouteTable]:
        """This rank's mailbox, reachable by those at these addresses, and its routes. Kept while it serves."""
        address = self._config.coordinator if self._world.rank == 0 else ""
        if self.mailbox is not None and self._table is not None and self._rotation is not None:
            if address or addresses.serves(self.mailbox.address, peers, self._config.interface):
                self._late.end(self.mailbox)
                self._rotation.look()
                return self.mailbox, self._table
            self.let_go()
        address = address or addresses.place_for(peers, self._config.interface)
        types = q.COORDINATOR if self._world.rank == 0 else q.PARTICIPANT

        def make() -> None:
            mailbox = open_mailbox(address, types, self._config)
            self._table = RouteTable(mailbox, lambda name: registry.make(name, self._config.transports))
            self.mailbox, self._rotation = mailbox, Rotation(mailbox, self._config)

        uninterrupted(make)
        assert self.mailbox is not None
        assert self._table is not None
        return self.mailbox, self._table

    def _meet(self) -> Rendezvous:
        """Where the source ranks find each other."""
        if self._config.coordinator:
            return AtAddress(self._config.coordinator, self._send_absence)
        return InStore(self._world, self._config)

    def _send_absence(self, version: str, reason: str) -> None:
        if self._world.rank > 0:
            mailbox, _ = self._open([self._config.coordinator])
            mailbox.send(self._config.coordinator, m.Absent(self._world.rank, version, reason))
        elif version and reason:
            self._told.begin(version)
            self._gives_up(version, reason, also_unheard=True)

    def interrupt(self, thread: int, error: BaseException) -> bool:
        """Raise an error in the thread that leads or follows, where it waits next; whether that can be."""
        mailbox = self.mailbox
        if mailbox is not None:
            mailbox.interrupt(thread, error)
        return mailbox is not None

    def raise_interrupt(self) -> None:
        """Raise what the calling thread is interrupted by, which waits elsewhere."""
        if self.mailbox is not None:
            self.mailbox.interruptions.raise_here()

    def forget_interrupt(self, thread: int) -> None:
        """That thread has ended."""
        if self.mailbox is not None:
            self.mailbox.interruptions.take(thread)

    def forget(self, extents: Sequence[Backing]) -> None:
        """No route may lend this memory any more."""
        if self._table is not None:
            self._table.forget(extents)

    def let_go(self) -> None:
        """Part from the sinks, and close everything. It can be opened again."""
        self._watch.close()
        mailbox, table = self.mailbox, self._table
        if mailbox is not None and table is not None:
            self._late.end(mailbox)
            for address, nonce in self._partners.items():
                mailbox.send(address, m.Goodbye(nonce=nonce))
            table.close()
            mailbox.close()
        self.mailbox = self._table = None
