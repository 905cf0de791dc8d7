"""From what there is to a plan."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_transport.errors import BudgetError, PlanError
from ckpt_transport.planning.manifest import Manifest
from ckpt_transport.planning.plan import Plan
from ckpt_transport.planning.settings import Settings
from ckpt_transport.planning.slots import DEGRADED, Cutting
from ckpt_transport.planning.stages import routes_of, stages_of
from ckpt_transport.planning.topology import Topology
from ckpt_transport.planning.ways import choose
from ckpt_transport.transport import Traits


def plan(manifest: Manifest, topology: Topology, traits: Mapping[str, Traits], settings: Settings) -> Plan:
    """The plan that brings to every sink of ``topology`` all that it needs of ``manifest``. Pure and deterministic.

    Args:
        manifest: what to move; its extents' owners are sources of the topology.
        topology: who takes part, and needs what; shares are of versions with the manifest's tensors.
        traits: of every transport that may be used.
        settings: what the user chose.

    Raises:
        PlanError: there is nothing to move or nobody to move it to, or no chain of transports reaches everybody.
        ConfigError: the transport that was asked for does not reach everybody.
        BudgetError: a participant's budget holds not even one slot.
    """
    if not topology.sinks:
        raise PlanError("an update needs at least one sink")
    if not manifest.tensors:
        raise PlanError(f"version '{manifest.version}' holds no tensors")
    name, (*narrower, to_all), notes = choose(manifest, topology, traits, settings)
    way = next((way for way in narrower if _has_room(Cutting(manifest, topology, traits, way), settings)), to_all)
    buckets, rings = Cutting(manifest, topology, traits, way).cut(settings, notes)
    routes, hops, hops_of = routes_of(way.chains, topology, traits)
    stages = stages_of(manifest, buckets, hops, hops_of, routes)
    notes.insert(0, f"transport {name}")
    return Plan(manifest, topology, routes, hops, tuple(buckets), stages, rings, way.demand.audiences, tuple(notes))


def _has_room(cutting: Cutting, settings: Settings) -> bool:
    """Whether all that is wanted fits. Shares may be passed on by sinks that would not pass on everything."""
    notes: list[str] = []
    try:
        cutting.cut(settings, notes)
    except BudgetError:
        return False
    return not any(note.startswith(DEGRADED) for note in notes)
