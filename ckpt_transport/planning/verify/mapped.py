"""The part of the proof that is about tensors that lie apart on a GPU: who maps them there can read that GPU."""

from __future__ import annotations

from ckpt_transport.errors import PlanError
from ckpt_transport.planning.values.plan import Plan, StageKind


def check_mapped(plan: Plan) -> None:
    """What lies apart is sent along routes that map it, on the GPU that it lies on, to ranks whose GPUs can read that.

    Raises:
        PlanError: it is not; names the bucket and the rank.
    """
    ranks = plan.topology.participants
    seen: set[tuple[int, int]] = set()
    for stage in plan.stages:
        if stage.kind is not StageKind.TRANSFER:
            continue
        bucket = plan.buckets[stage.bucket]
        if (stage.hop, bucket.extent) in seen or not plan.lies_apart(bucket):
            continue
        seen.add((stage.hop, bucket.extent))
        device = plan.manifest.extents[bucket.extent].device
        for leg in plan.hops[stage.hop].legs:
            route = plan.routes[leg.route]
            if leg.sender != plan.owner(bucket):
                continue
            if not route.maps_memory or route.devices[:1] != (device,):
                raise PlanError(
                    f"bucket {stage.bucket} lies apart on GPU {device}, and route {leg.route} does not map that"
                )
            blind = [rank for rank in leg.receivers if not ranks[rank].can_read(device)]
            if blind:
                raise PlanError(
                    f"bucket {stage.bucket} is mapped on GPU {device}, which the GPUs of ranks {blind[:4]} cannot read"
                )
