"""The coordinator of one update: source rank 0 leads everybody through the phases, or back."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox
from ckpt_transport.errors import (
    CkptTransportError,
    PlanMismatchError,
    PluginError,
)
from ckpt_transport.execution import Event
from ckpt_transport.memory import Backing
from ckpt_transport.planning import EVERYTHING, Plan, Role, Settings, TensorRange, Topology
from ckpt_transport.planning import Participant as Member
from ckpt_transport.planning.values.plan import Route
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Traits
from ckpt_transport.update import messages as m
from ckpt_transport.update.bandwidths import between_hosts
from ckpt_transport.update.invitations import Guests, Invitations
from ckpt_transport.update.members import TICK_SECONDS, Members
from ckpt_transport.update.onlookers import Progress, heedless
from ckpt_transport.update.outcome import Outcome
from ckpt_transport.update.participant import Participant
from ckpt_transport.update.plans import Plans
from ckpt_transport.update.report import Report
from ckpt_transport.update.routes import RouteTable
from ckpt_transport.update.ties import Ties


@dataclass(slots=True)
class RouteNames:
    """The names of routes that every member has kept, so that the next update can use them again."""

    _known: dict[tuple[str, tuple[str, ...], int], str] = field(default_factory=dict)

    def names(self, routes: Sequence[Route], joins: Sequence[m.Join]) -> tuple[str, ...]:
        """A name for every route of a plan: a kept one where all its members have it, else a new one."""
        found: list[str] = []
        alike: Counter[tuple[str, tuple[str, ...]]] = Counter()
        for route in routes:
            members = [joins[rank] for rank in route.ranks]
            ends = route.transport, tuple(member.uid for member in members)
            key = (*ends, alike[ends])
            alike[ends] += 1
            kept = self._known.get(key, "")
            if not kept or not all(kept in member.routes for member in members):
                kept = self._known[key] = f"{route.transport}-{secrets.token_hex(4)}"
            found.append(kept)
        return tuple(found)


class Coordinator:
    """Leads one update. Every method may raise what a participant reported.

    Args:
        update: a new name for it.
        mailbox: of source rank 0.
        config: deadlines, transport, bucket size.
        table, names, plans: routes, and the last plan, that are kept between updates.
        extents: what is behind rank 0's extents.
    """

    resumable: ClassVar[bool] = False
    """Whether the update goes on when members leave."""

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
        deadline = time.monotonic() + config.update_timeout
        self._local = Participant(mailbox, table, plans, extents, None, deadline)
        self._members = Members(update, mailbox, config, deadline)
        self._reached: list[str] = []
        self._update = update
        self._phases: dict[str, float] = {}
        self._told: dict[int, str] = {}
        self._applying = False
        """Members were told to run."""

    def lead(self, myself: m.Join, guests: Guests, progress: Progress, before_hold: Callable[[], None]) -> Report:
        """Run the whole update.

        Args:
            myself: rank 0's own introduction.
            guests: who else is to take part.
            progress: told about the bytes that rank 0 has sent.
            before_hold: called when all is ready, just before forward passes are held.

        Raises:
            UpdateAbortedError: it failed and changed nothing.
            TaintedError: it failed when some sinks had begun to apply, or did not serve it when they were told to.
        """
        started = time.monotonic()
        invitations = Invitations(self._members, self._mailbox, self._config, guests)
        try:
            with self._phase("join"):
                try:
                    invitations.gather(myself)
                finally:
                    self._reached = invitations.reached
            made, events = self._bring(heedless(progress), before_hold)
        except Exception as error:
            raise self._roll_back(error) from error
        except BaseException as interrupt:
            raise interrupt from self._roll_back(interrupt)
        with self._phase("commit"):
            outcome = self._commit(made.manifest.version)
        labels = {rank: join.label for rank, join in enumerate(self._members.joins)}
        return Report(
            made.manifest.version,
            made,
            time.monotonic() - started,
            self._phases,
            outcome.paused,
            tuple(events),
            labels,
            outcome.lost,
            dict(self._members.left),
            self._told,
        )

    @property
    def nonces(self) -> dict[str, str]:
        """What is said to each member carries, by address."""
        return self._members.nonces

    # -- phases -------------------------------------------------------------------------------------------------

    def _bring(self, progress: Progress, before_hold: Callable[[], None]) -> tuple[Plan, list[Event]]:
        """Everything between joining and commit: every sink has every byte then."""
        with self._phase("plan"):
            made = self._make_plan((), self._config.transport)
        self._prepare(made)
        with self._phase("hold"):
            before_hold()
            self._hold()
        with self._phase("run"):
            return made, self._run(made, progress)

    def _prepare(self, made: Plan) -> None:
        with self._phase("agree"):
            self._agree(made)
        with self._phase("connect"):
            self._connect()

    def _make_plan(self, present: Sequence[TensorRange], transport: str) -> Plan:
        joins = self._members.joins
        shares = list(dict.fromkeys(join.share for join in joins if join.share is not None))
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
                join.link,
                EVERYTHING if join.share is None else shares.index(join.share),
            )
            for rank, join in enumerate(joins)
        )
        shards = [join.manifest.owned_by(rank) for rank, join in enumerate(joins) if join.manifest is not None]
        settings = Settings(
            transport=transport,
            bucket_bytes=self._config.bucket_bytes,
            ring_depth=self._config.ring_depth,
        )
        try:
            return self._plans.make(shards, Topology(members, tuple(shares)), self._traits(), settings, present)
        except CkptTransportError as error:
            for join in joins:
                for name, reason in join.unavailable.items():
                    error.add_note(f"{join.label}: {name} is not available: {reason}")
            raise

    def _traits(self) -> dict[str, Traits]:
        """Of the transports that may be used: those that run here and, where rank 0 moves no byte, all others, too."""
        myself = self._members.joins[0]
        assert myself.manifest is not None
        names = myself.transports if myself.manifest.tensors else (*myself.transports, *myself.unavailable)
        found = {}
        for name in names:
            with contextlib.suppress(PluginError):
                found[name] = between_hosts(name, registry.load(name).traits, self._members.joins)
        return found

    def _agree(self, made: Plan) -> None:
        addresses = tuple(self._members.addresses)
        unknown = {rank for rank in self._members.others if self._members.joins[rank].plan != made.shape}
        encoded = made.encode() if unknown else b""
        names = self._names.names(made.routes, self._members.joins)
        ties = Ties(self._members.joins, made.manifest)
        digests = f"digests-{secrets.token_hex(8)}" if self._config.integrity == "always" else ""
        for rank in self._members.others:
            needed = encoded if rank in unknown else b""
            version = made.manifest.version
            proposed = m.Propose(
                self._update,
                needed,
                made.shape,
                version,
                rank,
                addresses,
                names,
                self.resumable,
                self._members.round,
                ties.asked_of(rank),
                digests,
            )
            self._members.send(rank, proposed)
        digest = self._local.propose(made, 0, addresses, names, resumable=self.resumable, digests=digests)
        answers = {0: self._local.digests(ties.asked_of(0))}
        for rank, agreed in self._members.gather(m.Agree, self._members.others).items():
            answers[rank] = agreed.tied
            if agreed.digest != digest:
                raise PlanMismatchError(
                    f"{self._members.label(rank)} holds plan {agreed.digest[:16]} and rank 0 holds {digest[:16]}; "
                    "do all participants run the same version of ckpt-transport?"
                )
        ties.check(answers, made.manifest.version)

    def _connect(self) -> None:
        self._members.tell(m.Open(self._update), self._members.others)
        lent = {0: self._local.open(self._members.watch)}
        lent |= {
            rank: opened.descriptors for rank, opened in self._members.gather(m.Opened, self._members.others).items()
        }
        by_route: defaultdict[int, dict[int, list[bytes]]] = defaultdict(dict)
        for rank, descriptors in lent.items():
            for route, described in descriptors.items():
                by_route[route][rank] = described
        self._members.tell(m.Connect(self._update, dict(by_route)), self._members.others)
        self._local.connect(by_route)
        self._members.gather(m.Connected, self._members.others)

    def _hold(self) -> None:
        """Stop the forward passes of every sink; of one engine's sinks before the same one."""
        sinks = self._sinks
        self._members.tell(m.Hold(self._update), sinks)
        engines: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for rank, held in self._members.gather(m.Held, sinks).items():
            engines[self._members.joins[rank].engine or f"rank {rank}"][rank] = held.forwards
        for forwards in engines.values():
            self._members.tell(m.Advance(self._update, max(forwards.values())), forwards)
        self._members.gather(m.Still, sinks)

    def _run(self, made: Plan, progress: Progress) -> list[Event]:
        total = sum(bucket.nbytes for bucket in made.buckets if made.owner(bucket) == 0)
        done = 0

        def sent(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(min(done, total), total)

        self._applying = True
        self._members.tell(m.Run(self._update), self._members.others)
        events = self._local.run(self._members.watch, sent)
        for ran in self._members.gather(m.Ran, self._members.others).values():
            events += ran.events
            if ran.told:
                self._told[ran.rank] = ran.told
        self._members.watch()
        return sorted(events, key=lambda event: event.start)

    def _commit(self, version: str) -> Outcome:
        """Tell everybody to serve, and hear what became of it. An interrupt waits until that is known.

        Raises:
            TaintedError: a sink that lives does not serve the version; says which serve what.
        """
        members = self._members
        interrupt = self._tell_commit()
        interrupt = self._hear_ends(self._config.join_timeout, interrupt)
        outcome = Outcome(members, version)
        fault = outcome.fault_of_commit()
        if interrupt is not None:
            raise interrupt from fault
        if fault is not None:
            raise fault
        return outcome

    def _tell_commit(self) -> BaseException | None:
        """Once one member may have been told to serve, all are; an interrupt is kept and returned."""
        interrupt: BaseException | None = None
        while True:
            try:
                self._members.tell(m.Commit(self._update), self._members.others)
            except Exception:
                raise
            except BaseException as error:
                interrupt = error
            else:
                return interrupt

    def _hear_ends(self, timeout: float, interrupt: BaseException | None = None) -> BaseException | None:
        """Wait until each member that lives has said how the update ended for it.

        An interrupt is kept and returned, so that it can say what became of the update; a second one is raised.
        """
        members = self._members
        deadline = time.monotonic() + timeout
        while True:
            late = time.monotonic() > deadline
            try:
                members.hear(0 if late else TICK_SECONDS)
                if late or not any(not members.has_ended(rank) and members.alive(rank) for rank in members.others):
                    return interrupt
            except Exception:
                raise
            except BaseException as error:
                if interrupt is not None:
                    raise
                interrupt = error

    def _roll_back(self, cause: BaseException) -> CkptTransportError:
        """Tell everybody to stop, hear who is tainted, and make the error that says so."""
        members = self._members
        reason = str(cause) if isinstance(cause, CkptTransportError) else f"{type(cause).__name__}: {cause}"
        reason = "; ".join([reason, *getattr(cause, "__notes__", ())])
        for address in self._reached:
            with contextlib.suppress(CkptTransportError):  # whoever cannot be reached has not joined
                self._members.order(address, m.Abort(self._update, reason))
        self._local.abort(cause)
        interrupt = None if isinstance(cause, Exception) else cause
        later = self._hear_ends(self._config.heartbeat_timeout + self._config.join_timeout, interrupt)
        error = Outcome(members, "").failure(reason, applying=self._applying)
        if later is not interrupt and later is not None:
            raise later from error
        return error

    @property
    def _sinks(self) -> list[int]:
        return [rank for rank, join in enumerate(self._members.joins) if join.role is Role.SINK]

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - started
