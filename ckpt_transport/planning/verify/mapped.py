"""The part of the proof that is about tensors that lie apart: who maps them, or reads them there, can do so."""

from __future__ import annotations

from ckpt_transport.errors import PlanError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning.values.plan import Leg, Plan, StageKind


def check_mapped(plan: Plan) -> None:
    """What lies apart is sent along routes that map it, on the GPU that it lies on, to ranks whose GPUs can read that;
    or from private memory of the host, to ranks that may read it.

    Raises:
        PlanError: it is not; names the bucket and the rank.
    """
    seen: set[tuple[int, int]] = set()
    for number, block in enumerate(plan.stages.blocks):
        bucket = plan.buckets[block.bucket]
        if (block.pattern, bucket.extent) in seen or not plan.lies_apart(bucket):
            continue
        seen.add((block.pattern, bucket.extent))
        for stage in plan.stages.pattern(number):
            if stage.kind is StageKind.TRANSFER:
                _check_hop(plan, block.bucket, stage.hop)


def _check_hop(plan: Plan, number: int, hop: int) -> None:
    """One hop of a bucket that lies apart."""
    ranks, bucket = plan.topology.participants, plan.buckets[number]
    device = plan.manifest.extents[bucket.extent].device
    for leg in plan.hops[hop].legs:
        route = plan.routes[leg.route]
        if leg.sender != plan.owner(bucket):
            continue
        if plan.manifest.extents[bucket.extent].kind is MemoryKind.READABLE:
            _check_readers(plan, number, leg)
            continue
        if not route.maps_memory or route.devices[:1] != (device,):
            raise PlanError(f"bucket {number} lies apart on GPU {device}, and route {leg.route} does not map that")
        blind = [rank for rank in leg.receivers if not ranks[rank].can_read(device)]
        if blind:
            raise PlanError(
                f"bucket {number} is mapped on GPU {device}, which the GPUs of ranks {blind[:4]} cannot read"
            )
        if plan.manifest.extents[bucket.extent].kind is MemoryKind.PAGED:
            _check_handed(plan, number, leg)


def _check_readers(plan: Plan, number: int, leg: Leg) -> None:
    """A leg of a bucket that lies apart in private memory of the sender."""
    ranks = plan.topology.participants
    if not plan.routes[leg.route].maps_memory:
        raise PlanError(f"bucket {number} lies apart, and route {leg.route} does not read it there")
    for rank in leg.receivers:
        if why := ranks[rank].why_not_read(ranks[leg.sender]):
            raise PlanError(f"bucket {number} is to be read where it lies: {why}")


def _check_handed(plan: Plan, number: int, leg: Leg) -> None:
    """A leg of a bucket that lies apart in memory that the sender hands over."""
    ranks = plan.topology.participants
    for rank in leg.receivers:
        if why := ranks[rank].why_not_handed(ranks[leg.sender]):
            raise PlanError(f"bucket {number} is to be mapped where it lies: {why}")
