"""The proof that a plan does what it should, made before the first byte moves.

:func:`verify` shares no code with the planner but the values, so that a mistake in one is found by the other:

* **coverage**: each byte of every tensor has exactly one owner, or is present at every sink; the pieces of the buckets
  that a sink applies cover each byte that it needs exactly once, and every bucket reaches each sink of its receiver set
  exactly once, is applied there exactly once, and reaches nobody else who does not pass it on;
* **order**: a rank sends or applies a bucket only after it has it. Every stage waits for earlier stages only and posts
  along a route follow the order of stages, so the stages can be run one by one in that order: there is no deadlock.
  A send of mapped memory ends when the bucket has been applied where it is mapped, so nothing earlier waits for it;
* **slots**: a slot is not overwritten while a stage may still read it, nor before every stage that needs it has;
* **memory**: every bucket fits its slot, starts where tensors stay aligned, and every rank's rings fit its budget,
  together with what its loader keeps until it has all of a layer.
"""

from __future__ import annotations

from collections import defaultdict

from ckpt_transport.errors import BudgetError
from ckpt_transport.planning.values.plan import IN_PLACE, Plan, RingUse
from ckpt_transport.planning.verify.coverage import alike, check_ownership, check_pieces, check_shares
from ckpt_transport.planning.verify.flow import Flow
from ckpt_transport.planning.verify.kept import most_kept
from ckpt_transport.planning.verify.structure import check_rings, check_routes


def verify(plan: Plan) -> None:
    """Prove ``plan``.

    Raises:
        CoverageError: a byte is missed, moved twice, or read before it is there; names the tensor or the stage.
        BudgetError: a ring is larger than its rank's budget, or a bucket than its slot.
        PlanError: the plan refers to something it does not contain, or is not one that can be run.
    """
    check_routes(plan)
    check_ownership(plan)
    check_pieces(plan, enumerate(plan.buckets))
    check_shares(plan)
    _check_memory(plan)
    Flow(plan).check()


def _check_memory(plan: Plan) -> None:
    check_rings(plan)
    used: defaultdict[int, int] = defaultdict(int)
    for ring in plan.rings:
        used[ring.rank] += ring.nbytes
    for (_, receiver_sets), ranks in alike(plan).items():
        keepers = [rank for rank in ranks if plan.topology.participants[rank].keeps_tensors]
        if keepers:
            come = [bucket for bucket in plan.buckets if bucket.receiver_set in receiver_sets]
            kept = most_kept(plan.manifest, come, plan.topology.share_of(keepers[0]))
            used.update({rank: used[rank] + kept for rank in keepers})
    for rank, nbytes in used.items():
        budget = plan.topology.participants[rank].budget
        if nbytes > budget:
            raise BudgetError(f"rank {rank} would need {nbytes:,} bytes of memory and has a budget of {budget:,}")
    rings = {(ring.rank, ring.use): ring for ring in plan.rings}
    receiving = [ring for ring in plan.rings if ring.use is RingUse.RECEIVE]
    depth = min((ring.depth for ring in receiving), default=0)
    slot_bytes = receiving[0].slot_bytes if receiving else 0
    for number, bucket in enumerate(plan.buckets):
        fill = rings.get((plan.owner(bucket), RingUse.FILL))
        if bucket.fill_slot != IN_PLACE and (
            fill is None or bucket.nbytes > fill.slot_bytes or not 0 <= bucket.fill_slot < fill.depth
        ):
            raise BudgetError(f"bucket {number} has no slot of its size to be filled into")
        if bucket.slot != IN_PLACE and (bucket.nbytes > slot_bytes or not 0 <= bucket.slot < depth):
            raise BudgetError(f"bucket {number} has no slot of its size to be received into")
