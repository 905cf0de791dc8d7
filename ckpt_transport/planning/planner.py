"""The planner makes a plan from a manifest, a topology, traits of transports, and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ckpt_transport.errors import BudgetError, PlanError
from ckpt_transport.memory import ON_ONE_GPU, MemoryKind, no_collections
from ckpt_transport.planning.by_columns import by_columns, gathering_seconds
from ckpt_transport.planning.candidates import Candidate, choose
from ckpt_transport.planning.links import NOT_MEASURED, Links, MeasuredRates
from ckpt_transport.planning.slots import DEGRADED, SlotAllocator
from ckpt_transport.planning.stages import routes_of, stages_of
from ckpt_transport.planning.values.manifest import Manifest
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Plan, Ring
from ckpt_transport.planning.values.settings import Settings
from ckpt_transport.planning.values.topology import EVERYTHING, Topology
from ckpt_transport.sizes import count, size
from ckpt_transport.transports.interface import Traits


@no_collections()
def plan(
    manifest: Manifest,
    topology: Topology,
    traits: Mapping[str, Traits],
    settings: Settings,
    rates: MeasuredRates = NOT_MEASURED,
) -> Plan:
    """Make the plan that brings every sink of ``topology`` what it needs of ``manifest``. Pure and deterministic.

    Args:
        manifest: what to move; its extents' owners are sources of the topology.
        topology: who takes part, and needs what; shares are of versions with the manifest's tensors.
        traits: of every transport that may be used.
        settings: what the user chose.
        rates: of the links of hosts, where they were measured.

    Raises:
        PlanError: there is nothing to move or nobody to move it to, or no tree of transports reaches everybody.
        ConfigError: the transport that was asked for does not reach everybody.
        BudgetError: a participant's budget holds not even one slot.
    """
    if not topology.sinks:
        raise PlanError("an update needs at least one sink")
    if not manifest.tensors:
        raise PlanError(f"version '{manifest.version}' holds no tensors")
    made = _plan(manifest, topology.in_order(manifest.ordered), traits, settings, rates)
    ordered = by_columns(manifest, topology)
    if ordered is None or not _brings_more_than_needed(made):
        return made
    try:
        narrower = _plan(*ordered, traits, settings, rates)
    except BudgetError:  # for a source that has no memory to gather columns in
        return made
    sent, otherwise = (sum(each.bytes_to.values()) for each in (narrower, made))
    seconds = max(narrower.prediction.seconds, gathering_seconds(narrower.manifest, topology, Links(rates)))
    if seconds > made.prediction.seconds or sent >= otherwise:
        return made
    tensors = count(len(narrower.manifest.ordered), "tensor")
    note = f"columns of {tensors} are gathered at the sources: {size(sent)} are sent instead of {size(otherwise)}"
    return msgspec.structs.replace(narrower, notes=(*narrower.notes, note))


def _brings_more_than_needed(made: Plan) -> bool:
    """Whether a sink is sent bytes that it cuts off."""
    needs = [share.nbytes for share in made.topology.shares]
    shares = {rank: made.topology.participants[rank].share for rank in made.topology.sinks}
    brought = made.bytes_to
    return any(share != EVERYTHING and brought[rank] > needs[share] for rank, share in shares.items())


def _plan(
    manifest: Manifest,
    topology: Topology,
    traits: Mapping[str, Traits],
    settings: Settings,
    rates: MeasuredRates,
) -> Plan:
    choice = choose(manifest, topology, traits, settings, rates)
    candidate, buckets, rings, notes = _fitting(choice.candidates, manifest, topology, traits, settings)
    notes += _gathered(manifest, topology, buckets)
    routes, hops, hops_of = routes_of(candidate.trees, topology, traits)
    stages = stages_of(manifest, buckets, hops, hops_of, routes)
    return Plan(
        manifest,
        topology,
        routes,
        hops,
        tuple(buckets),
        stages,
        rings,
        candidate.demand.receiver_sets,
        (f"transport {choice.name}", *choice.notes, *notes),
        candidate.prediction_for(manifest, buckets),
        tuple(choice.others),
    )


def _gathered(manifest: Manifest, topology: Topology, buckets: Sequence[Bucket]) -> list[str]:
    """Why tensors of a source pass through slots, and are not read where they lie."""
    notes: list[str] = []
    filled = {bucket.extent for bucket in buckets if bucket.fill_slot != IN_PLACE}
    for number in sorted(filled):
        extent = manifest.extents[number]
        reason = extent.reason
        ranks = topology.participants
        if extent.kind in ON_ONE_GPU:
            blind = [rank for rank in topology.sinks if not ranks[rank].can_read(extent.device)]
            reason = "not every transport on their way maps them"
            if blind:
                reason = f"the GPUs of sinks {blind[:4]} cannot read theirs"
            elif extent.kind is MemoryKind.PAGED:
                why = (ranks[rank].why_not_handed(ranks[extent.owner]) for rank in topology.sinks)
                reason = next(filter(None, why), reason)
        elif extent.kind is MemoryKind.READABLE:
            why = (ranks[rank].why_not_read(ranks[extent.owner]) for rank in topology.sinks)
            reason = next(filter(None, why), "not every transport on their way reads them")
        if reason:
            notes.append(f"the tensors of source {extent.owner} pass through slots: {reason}")
    return notes


def _fitting(
    candidates: Sequence[Candidate],
    manifest: Manifest,
    topology: Topology,
    traits: Mapping[str, Traits],
    settings: Settings,
) -> tuple[Candidate, list[Bucket], tuple[Ring, ...], list[str]]:
    """Take the first candidate that has all the memory it wants, else the one of fewest buckets.

    Sinks that lack the memory to pass on everything may have enough to pass on shares.

    Raises:
        BudgetError: none has the memory for one slot.
    """
    degraded: list[tuple[Candidate, list[Bucket], tuple[Ring, ...], list[str]]] = []
    failure: BudgetError | None = None
    for candidate in candidates:
        notes: list[str] = []
        try:
            buckets, rings = SlotAllocator(manifest, topology, traits, candidate).allocate(settings, notes)
        except BudgetError as error:
            failure = error
            continue
        found = candidate, buckets, rings, notes
        if not any(note.startswith(DEGRADED) for note in notes):
            return found
        degraded.append(found)
    if failure is not None and not degraded:
        raise failure
    return min(degraded, key=lambda found: len(found[1]))
