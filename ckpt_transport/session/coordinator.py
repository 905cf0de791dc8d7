"""The coordinator of one update: source rank 0 leads everybody through the phases, or back."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ckpt_transport import errors, registry
from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.messages import Refused
from ckpt_transport.errors import (
    CkptTransportError,
    ConfigError,
    JoinError,
    MessageError,
    PeerLostError,
    PlanMismatchError,
    TaintedError,
    TransferTimeout,
    UpdateAbortedError,
    UpdateError,
)
from ckpt_transport.execution import Event
from ckpt_transport.memory import Backing
from ckpt_transport.planning import Participant as Member
from ckpt_transport.planning import Plan, Role, Settings, Topology
from ckpt_transport.session import messages as m
from ckpt_transport.session.participant import Participant
from ckpt_transport.session.plans import Plans
from ckpt_transport.session.report import Report
from ckpt_transport.session.routes import RouteTable

TICK_SECONDS = 0.05
INVITE_SECONDS = 0.25
"""How often a sink that is busy with another update is invited again."""

Step = m.Agree | m.Opened | m.Connected | m.Held | m.Still | m.Ran
Answer = TypeVar("Answer", m.Agree, m.Opened, m.Connected, m.Held, m.Still, m.Ran)

Progress = Callable[[int, int], None]
"""Bytes done and bytes in all."""


@dataclass(slots=True)
class RouteNames:
    """The names of routes that every member has kept, so that the next update can use them again."""

    _known: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)

    def name(self, transport: str, members: Sequence[m.Join]) -> str:
        """A kept route's name when all ``members`` have it, else a new one."""
        key = (transport, tuple(member.uid for member in members))
        kept = self._known.get(key, "")
        if not kept or not all(kept in member.routes for member in members):
            kept = self._known[key] = f"{transport}-{secrets.token_hex(4)}"
        return kept


class Coordinator:
    """Leads one update. Every method may raise what a participant reported.

    Args:
        update: a new name for it.
        mailbox: of source rank 0.
        config: deadlines, transport, bucket size.
        table, names, plans: routes, and the last plan, that are kept between updates.
        extents: what is behind rank 0's extents.
    """

    def __init__(
        self,
        update: str,
        mailbox: Mailbox,
        config: Config,
        table: RouteTable,
        names: RouteNames,
        plans: Plans,
        extents: Sequence[Backing],
    ) -> None:
        self._mailbox, self._config, self._table, self._names = mailbox, config, table, names
        self._plans = plans
        self._deadline = time.monotonic() + config.update_timeout
        self._local = Participant(mailbox, table, plans, extents, None, self._deadline)
        self._addresses: list[str] = []
        self._joins: list[m.Join] = []
        self._invited: list[str] = []
        self._reached: list[str] = []
        self._update = update
        self._phases: dict[str, float] = {}
        self._pending: list[Step] = []
        self._aborted: dict[int, m.Aborted] = {}

    def lead(
        self,
        myself: m.Join,
        sources: int,
        sinks: Sequence[str],
        progress: Progress,
        before_hold: Callable[[], None],
    ) -> Report:
        """Run the whole update.

        Args:
            myself: rank 0's own introduction.
            sources: how many source ranks there are; the others come by themselves.
            sinks: addresses of the sinks to invite.
            progress: told about the bytes that rank 0 has sent.
            before_hold: called when all is ready, just before forward passes are held.

        Raises:
            UpdateAbortedError: it failed and changed nothing.
            TaintedError: it failed when some sinks had begun to apply.
        """
        started = time.monotonic()
        self._invited, self._reached = list(sinks), list(sinks)
        try:
            with self._phase("join"):
                self._gather_members(myself, sources)
            with self._phase("plan"):
                made = self._make_plan()
            with self._phase("agree"):
                self._agree(made)
            with self._phase("connect"):
                self._connect()
            with self._phase("hold"):
                before_hold()
                self._hold(made)
            with self._phase("run"):
                events, told = self._run(made, progress)
        except Exception as error:
            raise self._roll_back(error) from error
        except BaseException as interrupt:
            interrupt.add_note(str(self._roll_back(interrupt)))
            raise
        with self._phase("commit"):
            paused, lost = self._commit(made)
        labels = {rank: join.label for rank, join in enumerate(self._joins)}
        return Report(
            made.manifest.version,
            made,
            time.monotonic() - started,
            self._phases,
            paused,
            tuple(events),
            labels,
            lost,
            told,
        )

    # -- phases -------------------------------------------------------------------------------------------------

    def _gather_members(self, myself: m.Join, sources: int) -> None:
        assert myself.manifest is not None
        version, transports = myself.manifest.version, (*myself.transports, *myself.unavailable)

        def invite(address: str) -> None:
            self._mailbox.send(address, m.Invite(self._update, version, address, transports))

        for address in self._invited:
            invite(address)
        deadline = time.monotonic() + self._config.join_timeout
        source_joins: dict[int, tuple[str, m.Join]] = {0: (self._mailbox.address, myself)}
        sink_joins: dict[str, tuple[str, m.Join]] = {}
        busy: dict[str, str] = {}
        ask_again = time.monotonic() + INVITE_SECONDS
        while len(source_joins) < sources or len(sink_joins) < len(self._invited):
            received = self._mailbox.receive(TICK_SECONDS)
            if time.monotonic() > ask_again:
                for address in busy:
                    invite(address)
                ask_again = time.monotonic() + INVITE_SECONDS
            if received is None and time.monotonic() < deadline:
                continue
            if received is None:
                missing = [busy.get(address, address) for address in self._invited if address not in sink_joins]
                missing += [f"source rank {rank}" for rank in range(sources) if rank not in source_joins]
                raise JoinError(
                    f"did not join within {self._config.join_timeout:g} s: {', '.join(missing)}; "
                    "is it running, and is the address right?"
                )
            sender, message = received
            match message:
                case m.Join(role=Role.SOURCE, rank=rank):
                    source_joins[rank] = sender, message
                    self._reached.append(sender)
                    self._mailbox.watch(sender)
                case m.Join(update=self._update):
                    sink_joins[message.invited] = sender, message
                    busy.pop(message.invited, None)
                    self._mailbox.watch(sender)
                case m.Busy(update=self._update, address=address, reason=reason):
                    busy[address] = reason
                case Refused(reason=reason):
                    raise MessageError(f"{sender} could not be talked to: {reason}")
                case m.Failed(update=self._update):
                    raise self._rebuilt(message, sender)
        for rank in range(sources):
            self._addresses.append(source_joins[rank][0])
            self._joins.append(source_joins[rank][1])
        for address in self._invited:
            self._addresses.append(sink_joins[address][0])
            self._joins.append(sink_joins[address][1])
        if len(set(self._addresses)) != len(self._addresses):
            raise ConfigError(f"two of the sinks are the same one: {', '.join(self._addresses[sources:])}")

    def _make_plan(self) -> Plan:
        members = tuple(
            Member(
                rank,
                join.role,
                join.host,
                join.budget,
                join.transports,
                join.whole_tensors,
                join.label,
                join.keeps_tensors,
                join.devices,
            )
            for rank, join in enumerate(self._joins)
        )
        shards = [join.manifest for join in self._joins if join.manifest is not None]
        traits = {name: registry.load(name).traits for name in self._joins[0].transports}
        settings = Settings(
            transport=self._config.transport,
            bucket_bytes=self._config.bucket_bytes,
            ring_depth=self._config.ring_depth,
        )
        try:
            return self._plans.make(shards, Topology(members), traits, settings)
        except CkptTransportError as error:
            for join in self._joins:
                for name, reason in join.unavailable.items():
                    error.add_note(f"{join.label}: {name} is not available: {reason}")
            raise

    def _agree(self, made: Plan) -> None:
        addresses = tuple(self._addresses)
        unknown = {rank for rank in self._others if self._joins[rank].plan != made.shape}
        encoded = made.encode() if unknown else b""
        names = tuple(
            self._names.name(route.transport, [self._joins[rank] for rank in route.ranks]) for route in made.routes
        )
        for rank in self._others:
            needed = encoded if rank in unknown else b""
            version = made.manifest.version
            self._send(rank, m.Propose(self._update, needed, made.shape, version, rank, addresses, names))
        digest = self._local.propose(made, 0, addresses, names)
        for rank, agreed in self._gather(m.Agree, self._others).items():
            if agreed.digest != digest:
                raise PlanMismatchError(
                    f"{self._label(rank)} holds plan {agreed.digest[:16]} and rank 0 holds {digest[:16]}; "
                    "do all participants run the same version of ckpt-transport?"
                )

    def _connect(self) -> None:
        self._tell(m.Open(self._update), self._others)
        lent = {0: self._local.open(self._watch)}
        lent |= {rank: opened.descriptors for rank, opened in self._gather(m.Opened, self._others).items()}
        by_route: defaultdict[int, dict[int, list[bytes]]] = defaultdict(dict)
        for rank, descriptors in lent.items():
            for route, described in descriptors.items():
                by_route[route][rank] = described
        self._tell(m.Connect(self._update, dict(by_route)), self._others)
        self._local.connect(by_route)
        self._gather(m.Connected, self._others)

    def _hold(self, made: Plan) -> None:
        """Stop the forward passes of every sink; of one engine's sinks before the same one."""
        sinks = made.topology.sinks
        self._tell(m.Hold(self._update), sinks)
        engines: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for rank, held in self._gather(m.Held, sinks).items():
            engines[self._joins[rank].engine or f"rank {rank}"][rank] = held.forwards
        for forwards in engines.values():
            self._tell(m.Advance(self._update, max(forwards.values())), forwards)
        self._gather(m.Still, sinks)

    def _run(self, made: Plan, progress: Progress) -> tuple[list[Event], dict[int, str]]:
        total = sum(bucket.nbytes for bucket in made.buckets if made.owner(bucket) == 0)
        done = 0

        def sent(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(min(done, total), total)

        self._tell(m.Run(self._update), self._others)
        events = self._local.run(self._watch, sent)
        told = {}
        for ran in self._gather(m.Ran, self._others).values():
            events += ran.events
            if ran.told:
                told[ran.rank] = ran.told
        return sorted(events, key=lambda event: event.start), told

    def _commit(self, made: Plan) -> tuple[dict[int, float], tuple[str, ...]]:
        """Nobody can refuse any more. A sink that dies now is lost, and the update stands."""
        self._tell(m.Commit(self._update), self._others)
        answered: dict[int, float] = {}
        deadline = time.monotonic() + self._config.join_timeout
        waiting = set(self._others)
        while waiting and time.monotonic() < deadline:
            match self._mailbox.receive(TICK_SECONDS):
                case (_, m.Committed(update=self._update, rank=rank, paused=paused)):
                    answered[rank] = paused
                case (_, m.Aborted(update=self._update, rank=rank)):
                    waiting.discard(rank)
            waiting = {rank for rank in waiting if rank not in answered and self._alive(rank)}
        lost = tuple(self._joins[rank].label for rank in self._others if rank not in answered)
        return {rank: answered[rank] for rank in made.topology.sinks if rank in answered}, lost

    def _roll_back(self, cause: BaseException) -> CkptTransportError:
        """Tell everybody to stop, hear who is tainted, and make the error that says so."""
        reason = str(cause) if isinstance(cause, CkptTransportError) else f"{type(cause).__name__}: {cause}"
        reason = "; ".join([reason, *getattr(cause, "__notes__", ())])
        for address in self._reached:
            self._mailbox.send(address, m.Abort(self._update, reason))
        self._local.abort(cause)
        deadline = time.monotonic() + self._config.heartbeat_timeout + self._config.join_timeout
        waiting = {rank for rank in self._others if rank not in self._aborted}
        while waiting and time.monotonic() < deadline:
            with contextlib.suppress(CkptTransportError):
                self._take_in(TICK_SECONDS)
            waiting = {rank for rank in waiting if rank not in self._aborted and self._alive(rank)}
        tainted = tuple(self._label(rank) for rank, aborted in sorted(self._aborted.items()) if aborted.tainted)
        silent = [self._label(rank) for rank in self._others if rank not in self._aborted]
        gone = f"; no answer from {', '.join(silent)}" if silent else ""
        if tainted:
            return TaintedError(
                f"the update failed ({reason}){gone}; these sinks hold a mix of two versions and refuse to serve until "
                f"an update succeeds: {', '.join(tainted)}",
                tainted,
            )
        kept = "every sink that answered" if silent else "every sink"
        return UpdateAbortedError(f"the update failed ({reason}){gone}; it changed nothing: {kept} is as it was before")

    # -- talking ------------------------------------------------------------------------------------------------

    @property
    def _others(self) -> range:
        return range(1, len(self._addresses))

    def _send(self, rank: int, message: Message) -> None:
        self._mailbox.send(self._addresses[rank], message)

    def _tell(self, message: Message, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self._send(rank, message)

    def _gather(self, kind: type[Answer], ranks: Iterable[int]) -> dict[int, Answer]:
        """One message of ``kind`` from every one of ``ranks``.

        Raises:
            PeerLostError, TransferTimeout: somebody did not answer; names them.
            CkptTransportError: what somebody reported instead.
        """
        waiting = set(ranks)
        answers: dict[int, Answer] = {}
        while waiting:
            self._watch()
            for message in self._pending:
                if isinstance(message, kind):
                    answers[message.rank] = message
                    waiting.discard(message.rank)
            self._pending = [message for message in self._pending if not isinstance(message, kind)]
            if waiting:
                self._take_in(TICK_SECONDS)
        return answers

    def _watch(self) -> None:
        """Raise when the update has failed elsewhere, or is late."""
        self._take_in(0)
        for rank in self._others:
            if not self._alive(rank):
                raise PeerLostError(
                    f"{self._label(rank)} is gone: no sign of life for {self._config.heartbeat_timeout:g} s"
                )
        if time.monotonic() > self._deadline:
            raise TransferTimeout(f"the update did not end within {self._config.update_timeout:g} s (update_timeout)")

    def _take_in(self, timeout: float) -> None:
        received = self._mailbox.receive(timeout)
        while received is not None:
            sender, message = received
            match message:
                case m.Failed(update=self._update):
                    raise self._rebuilt(message, sender)
                case m.Aborted(update=self._update):
                    self._aborted[self._addresses.index(sender)] = message
                case m.Agree() | m.Opened() | m.Connected() | m.Held() | m.Still() | m.Ran():
                    if message.update == self._update:
                        self._pending.append(message)
            received = self._mailbox.receive(0)

    def _alive(self, rank: int) -> bool:
        try:
            self._mailbox.check_alive([self._addresses[rank]])
        except PeerLostError:
            return False
        return True

    def _label(self, rank: int) -> str:
        return f"rank {rank} ({self._joins[rank].label} at {self._addresses[rank]})"

    def _rebuilt(self, failed: m.Failed, sender: str) -> CkptTransportError:
        """The error a participant reported, of its own class where that is one of ours."""
        who = self._label(self._addresses.index(sender)) if sender in self._addresses else sender
        kind = getattr(errors, failed.error, None)
        if isinstance(kind, type) and issubclass(kind, CkptTransportError) and kind.__init__ is Exception.__init__:
            return kind(f"{who}: {failed.reason}")
        return UpdateError(f"{who}: {failed.error}: {failed.reason}")

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._phases[name] = time.monotonic() - started
