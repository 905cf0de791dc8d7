"""The part of the proof that is about how a plan is built: what it names is there, and nothing is there twice."""

from __future__ import annotations

from ckpt_transport.errors import CoverageError, PlanError
from ckpt_transport.planning.values.alignment import ALIGNMENT
from ckpt_transport.planning.values.plan import Plan, RingUse
from ckpt_transport.planning.values.stages import StageKind


def check_structure(plan: Plan) -> None:
    """Raises: PlanError or CoverageError, where the rest of the proof would not know what the plan means."""
    _check_buckets(plan)
    _check_routes(plan)
    _check_rings(plan)
    _check_stages(plan)


def _check_buckets(plan: Plan) -> None:
    """Receiver sets are of sinks, extents of participants, and buckets of extents and receiver sets that are there."""
    sinks, size = set(plan.topology.sinks), len(plan.topology.participants)
    for receiver_set in plan.receiver_sets:
        if not receiver_set or not sinks.issuperset(receiver_set):
            raise PlanError(f"a receiver set is {receiver_set}, which are not sinks")
    for extent in plan.manifest.extents:
        if not 0 <= extent.owner < size:
            raise PlanError(f"an extent names rank {extent.owner}, which is not there")
    for number, bucket in enumerate(plan.buckets):
        if not 0 <= bucket.receiver_set < len(plan.receiver_sets):
            raise PlanError(f"bucket {number} names receiver set {bucket.receiver_set}, which is not there")
        if not 0 <= bucket.extent < len(plan.manifest.extents):
            raise PlanError(f"bucket {number} lies outside its extent, {bucket.extent}, which is not there")


def _check_routes(plan: Plan) -> None:
    """Legs use routes of their own, whose members they are, and bring nothing to a rank twice."""
    size = len(plan.topology.participants)
    wanting = {*plan.topology.sinks, *(leg.sender for hop in plan.hops for leg in hop.legs)}
    used: set[int] = set()
    for number, hop in enumerate(plan.hops):
        receivers: list[int] = []
        for leg in hop.legs:
            if not 0 <= leg.route < len(plan.routes):
                raise PlanError(f"hop {number} names route {leg.route}, which is not there")
            if leg.route in used:
                raise PlanError(f"hop {number} uses route {leg.route}, which another leg uses")
            used.add(leg.route)
            members = (leg.sender, *leg.receivers)
            if sorted(members) != sorted(plan.routes[leg.route].ranks) or not all(0 <= rank < size for rank in members):
                raise PlanError(f"hop {number} connects ranks {members}, which are not those of route {leg.route}")
            receivers.extend(leg.receivers)
        if len(receivers) != len(set(receivers)):
            raise CoverageError(f"hop {number} sends a bucket to a rank twice")
        if not wanting.issuperset(receivers):
            idle = sorted(set(receivers) - wanting)
            raise PlanError(f"hop {number} sends to ranks {idle}, which are not sinks and pass nothing on")


def _check_rings(plan: Plan) -> None:
    """Every rank has one ring of a use, and all have slots of one size to receive into."""
    for ring in plan.rings:
        if not 0 <= ring.rank < len(plan.topology.participants):
            raise PlanError(f"a ring names rank {ring.rank}, which is not there")
        if ring.depth < 0 or ring.slot_bytes < 0 or ring.slot_bytes % ALIGNMENT:
            raise PlanError(f"rank {ring.rank} has a ring of {ring.depth} slots of {ring.slot_bytes:,} bytes")
    if len({(ring.rank, ring.use) for ring in plan.rings}) != len(plan.rings):
        raise PlanError("a rank has two rings of one use")
    if len({ring.slot_bytes for ring in plan.rings if ring.use is RingUse.RECEIVE}) > 1:
        raise PlanError("slots to receive into differ in size, and a transfer has one offset for all who receive it")


def _check_stages(plan: Plan) -> None:
    """Stages name what is there. Those of each bucket stand together, in the order of buckets."""
    stages, size = plan.stages, len(plan.buckets)
    for pattern in stages.patterns:
        for stage in pattern:
            if stage.kind is StageKind.TRANSFER and not 0 <= stage.hop < len(plan.hops):
                raise PlanError(f"a stage names hop {stage.hop}, which is not there")
    for number, block in enumerate(stages.blocks):
        if not 0 <= block.pattern < len(stages.patterns):
            raise PlanError(f"block {number} of stages names pattern {block.pattern}, which is not there")
        if not 0 <= block.bucket < size:
            raise PlanError(f"block {number} of stages names bucket {block.bucket}, which is not there")
        if block.bucket != number:
            raise CoverageError(
                f"block {number} of stages is of bucket {block.bucket}: stages of bucket {min(number, block.bucket)} "
                "are missing, or not next to each other"
            )
