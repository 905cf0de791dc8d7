"""The proof that a plan does what it should, made before the first byte moves.

:func:`verify` shares no code with the planner but the values, so that a mistake in one is found by the other:

* **coverage**: each byte of every tensor has exactly one owner, or is present at every sink; the pieces of the buckets
  that a sink applies cover each byte that it needs exactly once, and every bucket reaches each sink of its receiver set
  exactly once, is applied there exactly once, and reaches nobody else who does not pass it on;
* **order**: a rank sends or applies a bucket only after it has it. Every stage waits for earlier stages only and posts
  along a route follow the order of stages, so the stages can be run one by one in that order: there is no deadlock.
  A send of mapped memory ends when the bucket has been applied where it is mapped, so nothing earlier waits for it;
* **reads**: what a sink reads of the buckets that it maps is its share, each byte of it once, and nothing else;
* **mapped tensors**: tensors that lie apart on a GPU are mapped by ranks whose GPUs can read its memory, and sent in no
  other way;
* **slots**: a slot is not overwritten while a stage may still read it, nor before every stage that needs it has;
* **memory**: every bucket fits its slot, starts where tensors stay aligned, and every rank's rings fit its budget,
  together with what its loader keeps until it has all of a layer.

Rank 0 proves the whole of a plan before it proposes it. A member does not take its word for it: another version of the
library, or a mistake in it, would leave a mix of two versions there. So it proves by :func:`verify_part` what the plan
does there: the same, of the buckets and stages that concern it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from ckpt_transport.errors import BudgetError, PlanError
from ckpt_transport.memory import no_collections
from ckpt_transport.planning.values.plan import Plan
from ckpt_transport.planning.verify.coverage import Needs, alike, check_ownership, check_pieces, check_shares
from ckpt_transport.planning.verify.flow import Flow
from ckpt_transport.planning.verify.kept import most_kept
from ckpt_transport.planning.verify.mapped import check_mapped
from ckpt_transport.planning.verify.orders import check_orders
from ckpt_transport.planning.verify.reads import check_reads
from ckpt_transport.planning.verify.structure import check_structure


@no_collections()
def verify(plan: Plan) -> None:
    """Prove ``plan``.

    Raises:
        CoverageError: a byte is missed, moved twice, or read before it is there; names the tensor or the stage.
        BudgetError: a ring is larger than its rank's budget, or a bucket than its slot.
        PlanError: the plan refers to something it does not contain, or is not one that can be run.
    """
    check_structure(plan)
    check_orders(plan)
    check_ownership(plan)
    check_pieces(plan, enumerate(plan.buckets))
    check_shares(plan)
    budgets = {participant.rank: participant.budget for participant in plan.topology.participants}
    _check_memory(plan, budgets, ((mine, ranks) for (_, mine), ranks in alike(plan).items()))
    Flow(plan, budgets).check()
    check_mapped(plan)
    check_reads(plan, plan.topology.sinks)


@no_collections()
def verify_part(plan: Plan, rank: int, budget: int) -> None:
    """Prove what ``plan`` does on ``rank``, which has ``budget`` bytes of memory to spare; raises as :func:`verify`."""
    if not 0 <= rank < len(plan.topology.participants):
        raise PlanError(f"the plan has no rank {rank}")
    check_structure(plan)
    check_orders(plan)
    check_ownership(plan)
    mine = frozenset(number for number, receiver_set in enumerate(plan.receiver_sets) if rank in receiver_set)
    owned = {number for number, extent in enumerate(plan.manifest.extents) if extent.owner == rank}
    check_pieces(plan, (b for b in enumerate(plan.buckets) if b[1].receiver_set in mine or b[1].extent in owned))
    if rank in plan.topology.sinks:
        Needs(plan).check([rank], mine)
    _check_memory(plan, {rank: budget}, [(mine, [rank])])
    Flow(plan, [rank]).check()
    check_mapped(plan)
    if rank in plan.topology.sinks:
        check_reads(plan, [rank])


def _check_memory(
    plan: Plan, budgets: Mapping[int, int], members: Iterable[tuple[frozenset[int], Iterable[int]]]
) -> None:
    """Rings, and what loaders keep, fit the budget of each rank in ``budgets``.

    Args:
        plan: what is done.
        budgets: bytes of memory, by rank.
        members: receiver sets, and the ranks that belong to these and need the same.
    """
    used: defaultdict[int, int] = defaultdict(int)
    for ring in plan.rings:
        used[ring.rank] += ring.nbytes
    for receiver_sets, ranks in members:
        keepers = [rank for rank in ranks if plan.topology.participants[rank].keeps_tensors]
        if keepers:
            come = [bucket for bucket in plan.buckets if bucket.receiver_set in receiver_sets]
            kept = most_kept(plan.manifest, come, plan.topology.share_of(keepers[0]))
            used.update({rank: used[rank] + kept for rank in keepers})
    for rank, budget in budgets.items():
        if used[rank] > budget:
            raise BudgetError(f"rank {rank} would need {used[rank]:,} bytes of memory and has a budget of {budget:,}")
