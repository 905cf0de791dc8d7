"""A participant is one rank's part in an update, phase by phase: propose, open, connect, run, then commit or abort.

The coordinator calls these methods on its own participant and sends the same words to everybody else, whose
:class:`~ckpt_transport.update.follower.Follower` calls them when the messages arrive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch

from ckpt_transport.control import Mailbox
from ckpt_transport.engine import Engine, LoadedBucket
from ckpt_transport.errors import PlanMismatchError, TransferTimeout, UpdateError
from ckpt_transport.execution import (
    Arrival,
    Digests,
    FillMemory,
    Fills,
    Ledger,
    Pipeline,
    RankSchedule,
    RouteAttachment,
    StageEvent,
    arrivals,
    column_extents,
)
from ckpt_transport.memory import Backing, DistantRuns, Fence, Lendable, MemoryKind, PartialCopy, Runs, beside
from ckpt_transport.planning import IN_PLACE, Bucket, ByteRangeSet, PlacedTensor, Plan
from ckpt_transport.update.digests import BEFORE, BESIDE
from ckpt_transport.update.foreseen import foresee, key_of
from ckpt_transport.update.handover import Handover
from ckpt_transport.update.known_descriptors import ByRoute
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport.update.proposed import check_place, check_present, check_tensors, get_ready
from ckpt_transport.update.received import ReceivedBytes
from ckpt_transport.update.routes import OpenRoute, RouteTable, Watch
from ckpt_transport.update.ties import digests_of

FRESH_SECONDS = 1.0
"""For so long a look at lent tensors counts for one that is due."""


class Halted(UpdateError):
    """The coordinator has ended this round of an update; another may follow. Raised by a :data:`Watch`."""


class Participant:
    """Goes through the phases of an update on one rank.

    Args:
        mailbox: this participant's.
        table: the routes it keeps open.
        plans: what it knows from the last update.
        extents: what is behind the version's extents that this rank owns, in the order of the manifest; none on a sink.
        engine: where weights go; None on a source.
        deadline: seconds of the monotonic clock after which the update has failed.
        base: the version that the engine serves, of which the update replaces some tensors; empty for all.
        undo: the engine by which the last delta is undone; None where what is served came in another way.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        table: RouteTable,
        plans: PlanCache,
        extents: Sequence[Backing],
        engine: Engine | None,
        deadline: float,
        base: str = "",
        undo: Engine | None = None,
    ) -> None:
        self._undo = undo
        self._mailbox, self._table, self._extents = mailbox, table, extents
        self._handover, self._received = Handover(engine), ReceivedBytes()
        self._plans, self._base, self._deadline = plans, base, deadline
        self._schedule: RankSchedule | None = None
        self._addresses: Sequence[str] = ()
        self._names: Sequence[str] = ()
        self._routes: dict[int, OpenRoute] = {}
        self._fills: Fills | None = None
        self._sources, self._channel, self._digests = FillMemory(), "", Digests()
        self._resumable = self._finished = False
        self._looked_at = float("-inf")
        """When lent tensors were looked at before :meth:`open`, by the monotonic clock."""
        self.staged = ""
        """By what sinks know each other whose engines load beside what they serve; empty in other updates."""
        self.sinks: Mapping[int, str] = {}
        """Addresses of all sinks of the update, by rank; none before that is known."""

    def propose(
        self,
        plan: Plan,
        rank: int,
        addresses: Sequence[str],
        names: Sequence[str],
        *,
        resumable: bool = False,
        digests: str = "",
        staged: str = "",
    ) -> str:
        """Look at the plan and return its digest.

        Args:
            plan, rank: what is done, and which rank of it this is.
            addresses, names: of all members, and of the plan's routes.
            resumable: the update may go on with another plan when this one cannot be ended.
            digests: the name of the channel on which the digests of buckets are said; empty for none.
            staged: the engine is to load beside what it serves, and its sink knows others by this word; else empty.

        Raises:
            PlanMismatchError: this rank's engine cannot take what the plan brings, or would lack something; names it.
            PlanError: what the plan does here does not hold; see :func:`~ckpt_transport.planning.verify_part`.
        """
        schedule, engine = self._plans.schedule(plan, rank), self._engine
        check_place(plan, rank, engine)
        if engine is not None:
            check_tensors(plan, engine, self._plans, self._base)
            get_ready(plan, engine, staged=bool(staged))
            share = None if plan.topology.share_of(rank) is None else engine.share()
            if staged:
                engine.stage()
            if not plan.manifest.present:
                engine.prepare(plan.specs, share)
            self._received.needed = share
            check_present(plan, engine, self._received.has)
            if not resumable:
                foresee(schedule, engine, self._received, compared=bool(digests))
        self._resumable, self._channel, self.staged = resumable, digests, staged
        self._schedule, self._addresses, self._names = schedule, addresses, names
        self.sinks = {rank: addresses[rank] for rank in plan.topology.sinks}
        self._table.expect(schedule, names, addresses)
        return plan.digest

    def digests(self, tensors: Sequence[PlacedTensor]) -> tuple[bytes, ...]:
        """Of tensors that lie in this rank's own extents; see :func:`~ckpt_transport.update.ties.digests_of`."""
        return digests_of(tensors, self._extents)

    @property
    def applying(self) -> bool:
        """Whether the engine may not hold the old version any more; see :attr:`Handover.applying`."""
        return self._handover.applying

    @property
    def restores(self) -> bool:
        """Whether the engine goes back to the version before, so that there is no plan."""
        return bool(self.staged) and self._schedule is None

    def restore(self, sinks: Mapping[int, str], staged: str) -> None:
        """Get ready to take the engine back to the version before; no plan is proposed.

        Args:
            sinks, staged: as :attr:`sinks` and :attr:`staged`.

        Raises:
            PlanMismatchError: that version is not there.
        """
        engine = self._handover.engine = self._undo or self._engine
        assert engine is not None
        engine.restore()
        self.sinks, self.staged, self._finished = dict(sinks), staged, True

    def exchange(self) -> None:
        """Have the engine exchange what is staged and what it serves."""
        self._handover.exchange()

    def take_back(self) -> None:
        """Have the engine serve again what it did before, if it was exchanged."""
        self._handover.take_back()

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """How much has come from whom; nothing before this rank is connected."""
        return () if self._fills is None else arrivals(self._fills.ledger)

    @property
    def complete(self) -> bool:
        """Whether a run has ended that brought everything."""
        return self._finished

    def take(self, encoded: bytes, shape: str, version: str) -> Plan:
        """The plan that the coordinator means; as :meth:`PlanCache.take`."""
        return self._plans.take(encoded, shape, version)

    @property
    def has_its_routes(self) -> bool:
        """Whether all routes of the plan are open here, so that opening them waits for nobody."""
        return self._schedule is not None and self._table.has_all(self._schedule, self._names)

    def open(self, watch: Watch) -> dict[int, list[bytes]]:
        """Attach to the routes and register memory; the descriptors of what this rank lends."""
        schedule = self._ready_schedule
        if time.monotonic() - self._looked_at > FRESH_SECONDS:
            self.check_lent()
        self._looked_at, self._fills = float("-inf"), None
        time_left = max(self._deadline - time.monotonic(), 0.0)
        self._routes = self._table.open(schedule, self._names, self._addresses, time_left, watch)
        manifest = schedule.plan.manifest
        made = {part.extent for part in manifest.columns}
        numbers = [n for n, each in enumerate(manifest.extents) if each.owner == schedule.rank and n not in made]
        extents: dict[int, Backing] = dict(zip(numbers, self._extents, strict=True)) if self._extents else {}
        extents |= column_extents(manifest, extents)
        lendable = {
            number: cast(Lendable, extent)
            for number, extent in extents.items()
            if extent.kind is not MemoryKind.SCATTERED
        }
        with self._plans.taking_slots(lambda: self._table.shared_slots):
            descriptors, ring = self._table.lend(schedule, self._names, lendable)
        self._digests = self._new_digests(schedule, extents)
        self._sources = FillMemory(extents, None if ring is None else ring.tensor, self._digests.filled)
        return descriptors

    def _new_digests(self, schedule: RankSchedule, extents: Mapping[int, Backing]) -> Digests:
        if not self._channel:
            return Digests()
        channel, wake = self._table.channel(schedule, self._channel, self._addresses), self._mailbox.wake
        kinds = BEFORE if self._resumable else BESIDE
        made = kinds.begin(schedule, channel, extents, self._engine, wake)
        self._table.round.callback(made.close)
        return made

    def connect(self, descriptors: ByRoute, watch: Watch, name: str) -> None:
        """Learn what senders lend, by that name, and fill this rank's slots before passes are held, or as they run."""
        self._table.connect(self._routes, descriptors, name)
        if self._fills is None:
            fills = self._fills = Fills(
                Ledger(self._ready_schedule), self._attachments, self._sources, self._mailbox.wake
            )
            self._table.round.callback(fills.close)
            if self.staged:
                fills.advance()
            else:
                fills.run_ahead(watch, self._mailbox.pump)

    def connect_by_name(self, name: str, watch: Watch) -> bool:
        """Connect to what was lent by that name in the last update; whether all of that is known, and is lent still."""
        if (known := self._table.named(name)) is not None:
            self.connect(known, watch, name)
        return known is not None

    def run(self, watch: Watch, on_sent: Callable[[int], None] = lambda nbytes: None) -> list[StageEvent]:
        """Run this rank's part of the plan; ``on_sent`` hears how many bytes have gone, each time that some have.

        An engine that stages loads on a stream of its own, so that its forward passes do not wait for what arrives.

        Raises: whatever ended it early.
        """
        engine = self._engine
        if engine is None or not self.staged:
            return self._run(watch, on_sent)
        return beside(engine.device, "staging", lambda: self._run(watch, on_sent))

    def _run(self, watch: Watch, on_sent: Callable[[int], None]) -> list[StageEvent]:
        assert self._fills is not None, "nothing was connected"

        def guarded() -> None:
            watch()
            if time.monotonic() > self._deadline:
                raise TransferTimeout("the update did not end before its deadline; see update_timeout")
            self._digests.advance()

        pipeline = Pipeline(
            self._ready_schedule,
            self._attachments,
            self._fills,
            self._apply,
            guarded,
            self._mailbox.pump,
            self._mailbox.wake,
            on_sent,
            self._apply_stream(),
            self._digests,
            self._handover.meanwhile,
        )
        events = pipeline.run()
        self._digests.finish(guarded, self._mailbox.pump)
        self.check_lent()
        self._finish()
        return events

    def has_taken_in(self, extents: Sequence[Backing]) -> None:
        """This rank's extents are these, which were looked at just now."""
        self._extents, self._looked_at = extents, time.monotonic()

    def check_lent(self) -> None:
        """Look whether lent tensors are as they were, before :meth:`open` as soon as there is nothing else to do.

        Raises:
            CheckpointError: their owner has changed them.
        """
        for extent in self._extents:
            extent.check()
        self._looked_at = time.monotonic()

    def _apply_stream(self) -> torch.cuda.Stream | None:
        """The stream on which the engine reads what it is given; None when it may read at once.

        Also None when the update may go on after a failure: what was given must have arrived then.
        """
        engine = self._engine
        if engine is None or not engine.enqueues or engine.device.type != "cuda" or self._resumable:
            return None
        return torch.cuda.current_stream(engine.device)

    def stop(self, reason: BaseException) -> ByteRangeSet:
        """End this round: give up the routes, and return what the engine was given so far. Another plan may follow."""
        self._table.abort(reason)
        plan = None if self._schedule is None else self._schedule.plan
        if plan is not None and self._received.end_round(plan):
            self._finish()
        return self._received.has

    def confirm(self) -> None:
        """The engine stands still, and nothing has been moved.

        Raises:
            PlanMismatchError: it needs other bytes by now than the plan brings.
            UnwritableError: it has a tensor that cannot be written.
        """
        engine, schedule = self._engine, self._schedule
        if engine is None or schedule is None:
            return
        share = schedule.plan.topology.share_of(schedule.rank)
        if share is not None and not self._plans.is_needed(share, engine.share(), schedule.plan.manifest):
            raise PlanMismatchError(
                f"{engine.label} has changed since it said what it needs of a new version; update it again"
            )
        engine.confirm()

    def _finish(self) -> None:
        """The engine has everything."""
        self._handover.check()
        if self._engine is not None and not self._finished:
            self._engine.finish()
        self._finished = True

    def revoke(self) -> bool:
        """Give the engine nothing from now on, whatever comes; return whether it was given a byte. From any thread."""
        return self._handover.revoke()

    def dismiss(self) -> None:
        """End this update, in which nothing is outstanding, and keep the routes for others like it."""
        self._table.round.close()
        self._table.lend_again()

    def abort(self, reason: BaseException) -> None:
        """Give up: fail what is outstanding, close the routes."""
        self._table.abort(reason)

    def _apply(self, bucket: Bucket, runs: Runs) -> Fence | None:
        assert self._engine is not None
        plan = self._ready_schedule.plan
        key = key_of(plan, bucket)
        if self._received.has:
            lacking = self._received.lacking(plan, bucket)
            if not lacking:
                return None
            key = *key, tuple(lacking)
        stable = bucket.fill_slot == bucket.slot == IN_PLACE and not self._resumable
        self._handover.begin(beside=bool(self.staged))

        def look(seen: Runs, part: PartialCopy | None = None) -> None:
            self._digests.look(bucket, seen, part)

        given = LoadedBucket(key, runs, lambda: self._received.lacking(plan, bucket), stable, look)
        landing = self._engine.landing(given) if isinstance(runs, DistantRuns) else None
        if landing is not None:
            assert isinstance(runs, DistantRuns)
            self._digests.landed(bucket, runs.memory.read_into(landing, self._digests.compared(bucket)))
            self._engine.landed(given)
            self._received.add(bucket)
            return None
        if self._engine.reads_along and self._engine.device.type == "cpu" and not self.staged:
            given.along = self._digests.along(bucket, runs)
        elif runs[0].raw.is_cuda or self._engine.device.type == "cpu":
            look(runs)
        end = self._engine.load(given)
        look(runs)
        self._received.add(bucket)
        return self._digests.read(bucket, runs, end)

    @property
    def _engine(self) -> Engine | None:
        return self._handover.engine

    @property
    def _attachments(self) -> dict[int, RouteAttachment]:
        return {number: route.attachment for number, route in self._routes.items()}

    @property
    def _ready_schedule(self) -> RankSchedule:
        assert self._schedule is not None, "no plan was proposed"
        return self._schedule
