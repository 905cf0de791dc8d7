"""Whether one rank, and its engine, can take part in a plan that is proposed."""

from __future__ import annotations

from ckpt_transport.engine.engine import Engine
from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.memory import compile_kernels
from ckpt_transport.planning import ByteRangeSet, Plan, Role
from ckpt_transport.update.delta_engine import DeltaEngine
from ckpt_transport.update.expected import brought_of, check_expected
from ckpt_transport.update.plan_cache import PlanCache


def check_place(plan: Plan, rank: int, engine: Engine | None) -> None:
    """
    Raises:
        PlanMismatchError: the plan takes this rank for what it is not.
    """
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


def check_tensors(plan: Plan, engine: Engine, plans: PlanCache, base: str) -> None:
    """Look whether the engine can take the tensors of the plan, unless ``plans`` knows that from the last update.

    Args:
        plan, engine, plans: these.
        base: the version of which the update replaces some tensors; empty for all.

    Raises:
        PlanMismatchError: it cannot, or would lack something; names it.
    """
    expected = engine.expects()
    if base or not plans.fits(plan, expected):
        engine.check(plan.specs)
        check_expected(plan, engine, brought_of(expected, plan) if base else expected)
        if not base:
            plans.found_fit(plan, expected)


def get_ready(plan: Plan, engine: Engine, *, staged: bool) -> None:
    """Do what would else be done while requests stand still: have kernels compiled, and take in what a delta is.

    Raises:
        PlanMismatchError: a delta comes to an engine that waits for a version, or the other way round.
        DeltaRefusedError: the delta cannot be taken.
    """
    compile_kernels(engine.device)
    version, deltas = plan.manifest.version, plan.manifest.deltas
    if isinstance(engine, DeltaEngine):
        if not deltas or not staged:
            raise PlanMismatchError(f"a delta to '{version}' was to be staged, and what comes is not one")
        engine.take(deltas, plan.specs)
    elif deltas:
        raise PlanMismatchError(f"a delta to '{version}' comes, and the invitation of {engine.label} has named none")


def check_present(plan: Plan, engine: Engine, has: ByteRangeSet) -> None:
    """
    Raises:
        PlanMismatchError: the plan takes bytes for brought that the engine does not have.
    """
    for held in plan.manifest.present:
        if has.missing(held.spec.name, held.start, held.nbytes):
            raise PlanMismatchError(f"the plan leaves out bytes of {held.spec}, which {engine.label} lacks")
