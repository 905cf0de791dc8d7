"""A participant is one rank's part in an update, phase by phase: propose, open, connect, run, then commit or abort.

The coordinator calls these methods on its own participant and sends the same words to everybody else, whose
:class:`~ckpt_transport.update.follower.Follower` calls them when the messages arrive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch

from ckpt_transport.control import Mailbox
from ckpt_transport.engine.engine import Engine, LoadedBucket
from ckpt_transport.errors import PlanMismatchError, TransferTimeout, UpdateAbortedError, UpdateError
from ckpt_transport.execution import (
    Arrival,
    Digests,
    FillMemory,
    Fills,
    FirstSinkDigests,
    Ledger,
    OwnerDigests,
    Pipeline,
    PromptOwnerDigests,
    RankSchedule,
    RouteAttachment,
    SinkDigests,
    StageEvent,
    arrivals,
    column_extents,
)
from ckpt_transport.memory import Backing, Fence, Lendable, MemoryKind, Runs
from ckpt_transport.planning import IN_PLACE, Bucket, ByteRangeSet, PlacedTensor, Plan, Role, Share, TensorSpec
from ckpt_transport.update.delta_engine import DeltaEngine
from ckpt_transport.update.expected import brought_of, check_expected
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport.update.routes import OpenRoute, RouteTable, Watch
from ckpt_transport.update.ties import digests_of

TICK_SECONDS = 0.1


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
        self._mailbox, self._table, self._extents, self._engine = mailbox, table, extents, engine
        self._plans, self._base = plans, base
        self._deadline = deadline
        self._schedule: RankSchedule | None = None
        self._addresses: Sequence[str] = ()
        self._names: Sequence[str] = ()
        self._routes: dict[int, OpenRoute] = {}
        self._sources = FillMemory()
        self._fills: Fills | None = None
        self._channel = ""
        self._digests = Digests()
        self._has = ByteRangeSet()
        self._given: list[Bucket] = []
        self._needed: Share | None = None
        """What the engine needs; None for everything."""
        self._resumable = self._finished = False
        self.staged = ""
        """By what sinks know each other whose engines load beside what they serve; empty in other updates."""
        self.sinks: Mapping[int, str] = {}
        """The addresses of all sinks of the update, by rank; none before that is known."""
        self._exchanged = False
        self._applying = False
        self._revoked = False
        self._giving = threading.Lock()

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
        schedule = self._plans.schedule(plan, rank)
        _check_place(plan, rank, self._engine)
        if self._engine is not None:
            expected = self._engine.expects()
            if self._base or not self._plans.fits(plan, expected):
                self._engine.check(tuple(plan.manifest.specs.values()))
                check_expected(plan, self._engine, brought_of(expected, plan) if self._base else expected)
                if not self._base:
                    self._plans.found_fit(plan, expected)
            _take_deltas(self._engine, plan, staged)
            share = None if plan.topology.share_of(rank) is None else self._engine.share()
            if staged:
                self._engine.stage()
            if not plan.manifest.present:
                self._engine.prepare(tuple(plan.manifest.specs.values()), share)
            self._needed = share
            for held in plan.manifest.present:
                if self._has.missing(held.spec.name, held.start, held.nbytes):
                    raise PlanMismatchError(
                        f"the plan leaves out bytes of {held.spec}, which {self._engine.label} lacks"
                    )
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
        """Whether the engine may not hold the old version any more: it has been given a byte, or was changed before."""
        return self._applying or (self._engine is not None and self._engine.spoiled)

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
        self._engine = self._undo or self._engine
        assert self._engine is not None
        self._engine.restore()
        self.sinks, self.staged, self._finished = dict(sinks), staged, True

    def exchange(self) -> None:
        """Have the engine exchange what is staged and what it serves."""
        self._toggle()

    def take_back(self) -> None:
        """Have the engine serve again what it did before, if it was exchanged."""
        if self._exchanged:
            self._toggle()

    def _toggle(self) -> None:
        assert self._engine is not None
        with self._giving:
            self._check_not_revoked()
            self._applying = True
        try:
            self._engine.exchange()
        except Exception as error:
            self._applying = not isinstance(error, PlanMismatchError)
            raise
        except BaseException:  # an interrupt, which is raised when all is exchanged
            self._exchanged, self._applying = not self._exchanged, False
            raise
        self._exchanged, self._applying = not self._exchanged, False

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
        self._check_lent()
        self._routes = self._table.open(schedule, self._names, self._addresses, self._time_left(), watch)
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
        descriptors, ring = self._table.lend(schedule, self._names, lendable)
        self._digests = self._new_digests(schedule, extents)
        self._sources = FillMemory(extents, None if ring is None else ring.tensor, self._digests.filled)
        return descriptors

    def _new_digests(self, schedule: RankSchedule, extents: Mapping[int, Backing]) -> Digests:
        if not self._channel:
            return Digests()
        channel = self._table.channel(schedule, self._channel, self._addresses)
        wake = self._mailbox.wake
        made: OwnerDigests | SinkDigests
        if self._engine is None:
            made = (PromptOwnerDigests if self._resumable else OwnerDigests)(schedule, channel, extents, wake)
        else:
            made = (FirstSinkDigests if self._resumable else SinkDigests)(schedule, channel, self._engine.label, wake)
        self._table.round.callback(made.close)
        return made

    def connect(self, descriptors: Mapping[int, Mapping[int, Sequence[bytes]]], watch: Watch) -> None:
        """Learn what the senders of this rank's routes lend, and fill this rank's own slots before passes are held."""
        for number, route in self._routes.items():
            route.attachment.endpoint.connect(descriptors.get(number, {}))
        ledger = Ledger(self._ready_schedule)
        fills = self._fills = Fills(ledger, self._attachments, self._sources, self._mailbox.wake)
        self._table.round.callback(fills.close)
        fills.run_ahead(watch, self._mailbox.pump)

    def run(self, watch: Watch, on_sent: Callable[[int], None] = lambda nbytes: None) -> list[StageEvent]:
        """Run this rank's part of the plan; ``on_sent`` hears how many bytes have gone, each time that some have.

        Raises: whatever ended it early.
        """
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
        )
        events = pipeline.run()
        self._digests.finish(guarded, self._mailbox.pump)
        self._check_lent()
        self._finish()
        return events

    def _check_lent(self) -> None:
        """
        Raises:
            CheckpointError: the owner of lent tensors has changed them.
        """
        for extent in self._extents:
            extent.check()

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
        for bucket in self._given:
            for piece in bucket.pieces:
                assert plan is not None
                for spec, start, _, nbytes in plan.places(piece):
                    self._has.add(spec.name, start, nbytes)
        self._given.clear()
        if plan is not None and self._needed is not None:
            self._add_unneeded(plan, ByteRangeSet(self._needed.ranges))
        if plan is not None and self._has.covers({name: spec.nbytes for name, spec in plan.manifest.specs.items()}):
            self._finish()
        return self._has

    def _add_unneeded(self, plan: Plan, needed: ByteRangeSet) -> None:
        """What the engine does not need counts as had; where tensors are sent whole, only whole tensors."""
        for name, spec in plan.manifest.specs.items():
            unneeded = needed.missing(name, 0, spec.nbytes)
            if not plan.topology.whole_tensors or unneeded == [(0, spec.nbytes)]:
                for low, high in unneeded:
                    self._has.add(name, low, high - low)

    def confirm(self) -> None:
        """The engine stands still, and nothing has been moved.

        Raises:
            PlanMismatchError: it needs other bytes by now than the plan brings.
            UnwritableError: it has a tensor that cannot be written.
        """
        if self._schedule is None:
            return
        share = self._schedule.plan.topology.share_of(self._schedule.rank)
        if self._engine is not None and share is not None and share != self._share_now():
            raise PlanMismatchError(
                f"{self._engine.label} has changed since it said what it needs of a new version; update it again"
            )
        if self._engine is not None:
            self._engine.confirm()

    def _share_now(self) -> Share | None:
        """What the engine needs, as the plan numbers bytes."""
        assert self._engine is not None
        share = self._engine.share()
        return None if share is None else share.in_order(self._ready_schedule.plan.manifest.ordered)

    def _finish(self) -> None:
        """The engine has everything."""
        self._check_not_revoked()
        if self._engine is not None and not self._finished:
            self._engine.finish()
        self._finished = True

    def revoke(self) -> bool:
        """Give the engine nothing from now on, whatever comes; return whether it was given a byte. From any thread."""
        with self._giving:
            self._revoked = True
            return self.applying

    def _check_not_revoked(self) -> None:
        if self._revoked:
            raise UpdateAbortedError("the update was given up while a call did not return")

    def abort(self, reason: BaseException) -> None:
        """Give up: fail what is outstanding, close the routes."""
        self._table.abort(reason)

    def _apply(self, bucket: Bucket, runs: Runs) -> Fence | None:
        assert self._engine is not None
        plan = self._ready_schedule.plan
        key: tuple[object, ...] = plan.shape, *bucket.first
        if self._has:
            lacking = self._lacking(bucket)
            if not lacking:
                return None
            key = *key, tuple(lacking)
        stable = bucket.fill_slot == bucket.slot == IN_PLACE and not self._resumable
        with self._giving:
            self._check_not_revoked()
            self._applying = not self.staged

        def look(seen: Runs) -> None:
            self._digests.look(bucket, seen)

        if runs[0].raw.is_cuda or self._engine.device.type == "cpu":
            look(runs)
        end = self._engine.load(LoadedBucket(key, runs, lambda: self._lacking(bucket), stable, look))
        look(runs)
        self._given.append(bucket)
        return self._digests.read(bucket, runs, end)

    def _lacking(self, bucket: Bucket) -> list[tuple[TensorSpec, int, int, int]]:
        """What the engine was not given in an earlier round: tensor, first byte, where in the bucket, and length."""
        plan = self._ready_schedule.plan
        found = []
        for spec, start, at, nbytes in (place for piece in bucket.pieces for place in plan.places(piece)):
            if not self._has:
                found.append((spec, start, at, nbytes))
                continue
            for low, high in self._has.missing(spec.name, start, nbytes):
                found.append((spec, low, at + low - start, high - low))
        return found

    @property
    def _attachments(self) -> dict[int, RouteAttachment]:
        return {number: route.attachment for number, route in self._routes.items()}

    @property
    def _ready_schedule(self) -> RankSchedule:
        assert self._schedule is not None, "no plan was proposed"
        return self._schedule

    def _time_left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)


def _take_deltas(engine: Engine, plan: Plan, staged: str) -> None:
    """
    Raises:
        PlanMismatchError: a delta comes to an engine that waits for a version, or the other way round.
        DeltaRefusedError: the delta cannot be taken.
    """
    version, deltas = plan.manifest.version, plan.manifest.deltas
    if isinstance(engine, DeltaEngine):
        if not deltas or not staged:
            raise PlanMismatchError(f"a delta to '{version}' was to be staged, and what comes is not one")
        engine.take(deltas, tuple(plan.manifest.specs.values()))
    elif deltas:
        raise PlanMismatchError(f"a delta to '{version}' comes, and the invitation of {engine.label} has named none")


def _check_place(plan: Plan, rank: int, engine: Engine | None) -> None:
    """The plan takes this rank for what it is."""
    taken = plan.topology.participants[rank]
    for what, planned, is_so in (
        ("is a sink", taken.role is Role.SINK, engine is not None),
        ("takes tensors whole", taken.whole_tensors, engine is not None and engine.whole_tensors),
        ("keeps tensors", taken.keeps_tensors, engine is not None and engine.keeps_tensors),
    ):
        if planned != is_so:
            raise PlanMismatchError(
                f"the plan was made for another rank {rank}: '{what}' is {planned} in it and {is_so} here"
            )
