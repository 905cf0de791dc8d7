"""Runs plans by real pipelines over real endpoints, every rank on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ckpt_transport.control import Mailbox, RouteControl
from ckpt_transport.errors import TransferTimeout
from ckpt_transport.execution import (
    Apply,
    Digests,
    FillMemory,
    Fills,
    Ledger,
    Lent,
    LentKind,
    Pipeline,
    RankSchedule,
    RouteAttachment,
    StageEvent,
)
from ckpt_transport.memory import Buffer, Fence, MemoryKind, Runs, Segment, part_of
from ckpt_transport.planning import Bucket, Plan, RingUse, Settings, StageKind
from ckpt_transport.testing import LoopbackTransport
from ckpt_transport.transports.interface import Control, Endpoint, Group, Transport
from ckpt_transport_shm.plugin import ShmEndpoint, ShmTransport
from tests.unit.any_schedule import needed
from tests.unit.devices import PATIENCE
from tests.unit.worlds import INVENTED, World, manifest, topology


class AnywhereTransport(ShmTransport):
    """Shared memory between hosts that are imagined."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return ShmEndpoint(group, control)


IN_PROCESS: Mapping[str, Transport] = {
    "post": LoopbackTransport(),
    "read": LoopbackTransport(),
    "screen": AnywhereTransport(),
    "window": ShmTransport(),
    "wire": LoopbackTransport(),
}

Hook = Callable[[int, Bucket], None]


class EngineError(Exception):
    """What an engine's loader raises."""


def nothing(rank: int, bucket: Bucket) -> None:
    """An engine that always takes what it gets."""


@dataclass
class Outcome:
    """What became of one rank."""

    error: BaseException | None = None
    events: list[StageEvent] = field(default_factory=list)
    applied: list[Bucket] = field(default_factory=list)
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    moved: int = 0


class Fleet:
    """Runs a plan on threads.

    Args:
        plan: what to do.
        transports: by the names the plan uses.
        on_apply: called before a sink takes a bucket.
        on_watch: called with the rank whenever a pipeline looks around.
    """

    anywhere = False
    """Whether buckets may be read on other threads than the one that runs the pipeline."""

    def __init__(
        self,
        plan: Plan,
        transports: Mapping[str, Transport] = IN_PROCESS,
        on_apply: Hook = nothing,
        on_watch: Callable[[int], None] = lambda rank: None,
    ) -> None:
        self.plan, self.transports, self.on_apply, self.on_watch = plan, transports, on_apply, on_watch
        self.size = len(plan.topology.participants)
        self.segments: list[Segment] = []
        self.extents = [self._extent(extent.nbytes, extent.kind) for extent in plan.manifest.extents]
        self.outcomes = {rank: Outcome() for rank in range(self.size)}
        self.described: dict[tuple[int, int], list[bytes]] = {}
        self.barrier = threading.Barrier(self.size)

    def _extent(self, nbytes: int, kind: MemoryKind) -> Buffer:
        if kind is MemoryKind.PRIVATE:
            buffer = Buffer.private(nbytes)
        else:
            self.segments.append(Segment.create(nbytes))
            buffer = Buffer(self.segments[-1].tensor()[:nbytes], self.segments[-1])
        buffer.tensor.random_(0, 256)
        return buffer

    def run(self) -> dict[int, Outcome]:
        mailboxes = [Mailbox() for _ in range(self.size)]
        threads = [threading.Thread(target=self._rank, args=(rank, mailboxes)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for mailbox in mailboxes:
            mailbox.close()
        for segment in self.segments:
            segment.close()
        return self.outcomes

    def _rank(self, rank: int, mailboxes: Sequence[Mailbox]) -> None:
        outcome, schedule, mailbox = self.outcomes[rank], RankSchedule(self.plan, rank), mailboxes[rank]
        attachments: dict[int, RouteAttachment] = {}
        deadline = time.monotonic() + PATIENCE

        def watch() -> None:
            self.on_watch(rank)
            if time.monotonic() > deadline:
                raise TransferTimeout("the test took too long")

        def progress(nbytes: int) -> None:
            outcome.moved += nbytes

        try:
            for number in schedule.routes:
                route = self.plan.routes[number]
                hosts = tuple(self.plan.topology.host(member) for member in route.ranks)
                group = Group(f"route {number}", route.ranks, rank, hosts)
                control = RouteControl(mailbox, group, {n: other.address for n, other in enumerate(mailboxes)})
                endpoint = self.transports[route.transport].open(group, control, PATIENCE)
                attachments[number] = RouteAttachment(endpoint)
            sources = self._register(rank, schedule, attachments)
            self.barrier.wait(PATIENCE)
            for number, attachment in attachments.items():
                sender = next(leg.sender for hop in self.plan.hops for leg in hop.legs if leg.route == number)
                attachment.endpoint.connect({sender: self.described[number, sender]})
            digests = self.digests(schedule, mailbox, mailboxes)
            sources.filled = digests.filled
            apply = self._apply(rank)

            def looked_at(bucket: Bucket, runs: Runs) -> Fence | None:
                digests.look(bucket, runs)
                return digests.read(bucket, runs, apply(bucket, runs))

            pump, wake, stream = mailbox.pump, mailbox.wake, self.apply_stream(rank)

            def compared() -> None:
                watch()
                digests.advance()

            fills = Fills(Ledger(schedule), attachments, sources, wake)
            pipeline = Pipeline(
                schedule, attachments, fills, looked_at, compared, pump, wake, progress, stream, digests
            )
            outcome.events = pipeline.run()
            digests.finish(compared, pump)
            self.barrier.wait(PATIENCE)
        except BaseException as error:
            outcome.error = error
            self.barrier.abort()
            for attachment in attachments.values():
                attachment.endpoint.abort(error)
        for attachment in attachments.values():
            attachment.endpoint.close()

    def _register(self, rank: int, schedule: RankSchedule, attachments: Mapping[int, RouteAttachment]) -> FillMemory:
        sends = {leg.route for hop in self.plan.hops for leg in hop.legs if leg.sender == rank}
        mapped_first = sorted(attachments, key=lambda n: (n not in sends, not self.plan.routes[n].maps_memory))
        rings: dict[RingUse, Buffer] = {}
        for use in RingUse:
            if (ring := self.plan.ring(rank, use)) is not None:
                rings[use] = attachments[mapped_first[0]].endpoint.allocate(ring.nbytes)
                rings[use].tensor.fill_(0xA5)
        for number, attachment in attachments.items():
            if number in sends:
                attachment.lent = [
                    attachment.endpoint.register(self._lent(lent, rings)) for lent in schedule.lent[number]
                ]
                self.described[number, rank] = [region.descriptor for region in attachment.lent]
            elif not self.plan.routes[number].maps_memory:
                attachment.landing = attachment.endpoint.register(rings[RingUse.RECEIVE])
        own = {
            number: self.extents[number]
            for number, extent in enumerate(self.plan.manifest.extents)
            if extent.owner == rank
        }
        return FillMemory(own, rings[RingUse.FILL].tensor if RingUse.FILL in rings else None)

    def _lent(self, lent: Lent, rings: Mapping[RingUse, Buffer]) -> Buffer:
        if lent.memory is LentKind.EXTENT:
            return self.extents[lent.extent]
        return rings[RingUse.FILL if lent.memory is LentKind.FILL else RingUse.RECEIVE]

    def apply_stream(self, rank: int) -> torch.cuda.Stream | None:
        """Where a rank's engine reads what it is given, if it does so later."""
        return None

    def digests(self, schedule: RankSchedule, mailbox: Mailbox, mailboxes: Sequence[Mailbox]) -> Digests:
        """What a rank does about digests."""
        return Digests()

    def _apply(self, rank: int) -> Apply:
        outcome = self.outcomes[rank]
        thread = threading.current_thread()

        def apply(bucket: Bucket, runs: Runs) -> None:
            assert self.anywhere or threading.current_thread() is thread
            self.on_apply(rank, bucket)
            for piece in bucket.pieces:
                nbytes = self.plan.manifest.tensors[piece.tensor].nbytes
                into = outcome.tensors.setdefault(piece.tensor, torch.zeros(nbytes, dtype=torch.uint8))
                source = part_of(runs, piece.bucket_offset, piece.nbytes)
                into[piece.tensor_offset : piece.tensor_offset + piece.nbytes] = source
            outcome.applied.append(bucket)

        return apply


def check(fleet: Fleet) -> None:
    """Every sink has every byte, in the order of the plan, and every stage was recorded."""
    plan, outcomes = fleet.plan, fleet.run()
    errors = {rank: outcome.error for rank, outcome in outcomes.items() if outcome.error is not None}
    assert not errors, errors
    for rank, outcome in outcomes.items():
        steps = RankSchedule(plan, rank).steps
        recorded = Counter((event.kind, event.bucket) for event in outcome.events)
        assert recorded == Counter((step.kind, step.bucket) for step in steps)
        assert all(event.start <= event.end and event.rank == rank for event in outcome.events)
        if rank in plan.topology.sinks:
            buckets = [plan.buckets[stage.bucket] for stage in plan.stages if stage.kind is StageKind.APPLY]
            wanted = [bucket for bucket in buckets if rank in plan.receiver_sets[bucket.receiver_set]]
            assert outcome.applied == wanted
            assert outcome.moved >= sum(bucket.nbytes for bucket in wanted)
            for index, tensor in enumerate(plan.manifest.tensors):
                lies = fleet.extents[tensor.extent].tensor[tensor.offset : tensor.offset + tensor.nbytes]
                came = outcome.tensors.get(index, torch.zeros_like(lies))
                asked = torch.from_numpy(needed(plan, rank, tensor)[: tensor.nbytes])
                assert torch.equal(came[asked], lies[asked]), f"{tensor.spec} at rank {rank}"


def small(transport: str, *, kind: MemoryKind = MemoryKind.SHARED, ring_depth: int = 2) -> Plan:
    """One source and two sinks on a host, seven buckets."""
    world = World(
        manifest([1000] * 7, kind=kind),
        topology(["a"], ["a", "a"]),
        INVENTED,
        Settings(transport=transport, bucket_bytes=1024, ring_depth=ring_depth),
    )
    return world.plan()


others: frozenset[threading.Thread] = frozenset()
"""Threads of pumps that ran when the test began."""


def pumps() -> list[threading.Thread]:
    """The threads of pumps that still run, of those that the test has started."""
    named = [thread for thread in threading.enumerate() if thread.name.startswith("ckpt-transport-pump")]
    return [thread for thread in named if thread not in others]
