"""Given tensors of a trainer's GPU that others can map, then they are read where they lie by those who can read it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from ckpt_transport.errors import PlanError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    IN_PLACE,
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    RankInfo,
    Role,
    Settings,
    TensorSpec,
    Topology,
    plan,
    verify,
)
from ckpt_transport_cuda_ipc import CudaIpcTransport
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_nccl import NcclTransport
from ckpt_transport_shm import ShmTransport
from tests.unit.any_schedule import simulate

replace = msgspec.structs.replace
TRAITS = {kind.name: kind.traits for kind in (CudaIpcTransport, GlooTransport, NcclTransport, ShmTransport)}
NBYTES = 100_000
HOST, OWN, OTHER, FAR = "host 0", "gpu a", "gpu b", "gpu c"


def lent(*devices: str, reason: str = "") -> Manifest:
    """Every source has four tensors on its GPU; others can map them unless there is a ``reason`` against it."""
    kind = MemoryKind.SCATTERED if reason else MemoryKind.EXPORTED
    extents, tensors = [], []
    for owner, device in enumerate(devices):
        extents.append(Extent(owner, 4 * 100_096, kind, "" if reason else device, reason))
        for number in range(4):
            spec = TensorSpec(f"{owner}.{number}", "U8", (NBYTES,))
            tensors.append(PlacedTensor(spec, owner, number * 100_096, NBYTES))
    return Manifest("step-1", tuple(extents), tuple(tensors))


def fleet(sources: Sequence[Sequence[str]], *sinks: tuple[str, Sequence[str]]) -> Topology:
    """Sources and the GPUs that they can use, sinks with the GPU of each and those that it can read."""
    members = [
        RankInfo(rank, Role.SOURCE, HOST, 1 << 30, tuple(TRAITS), devices=tuple(devices))
        for rank, devices in enumerate(sources)
    ]
    for device, reads in sinks:
        members.append(
            RankInfo(len(members), Role.SINK, HOST, 1 << 30, tuple(TRAITS), devices=(device,), reads=tuple(reads))
        )
    return Topology(tuple(members))


def made(version: Manifest, topology: Topology, transport: str = "auto") -> Plan:
    found = plan(version, topology, TRAITS, Settings(transport=transport, bucket_bytes=1 << 18))
    verify(found)
    simulate(found, 1)
    return found


def in_place(found: Plan) -> bool:
    return not found.rings and all(bucket.fill_slot == bucket.slot == IN_PLACE for bucket in found.buckets)


@pytest.mark.parametrize("sinks", [[(OWN, ())], [(OTHER, (OWN,))], [(OWN, ()), (OTHER, (OWN, FAR)), (FAR, (OWN,))]])
def test_given_sinks_whose_gpus_can_read_the_trainers_then_no_byte_is_copied_before_they_read_it(
    sinks: list[tuple[str, tuple[str, ...]]],
) -> None:
    found = made(lent(OWN), fleet([[OWN, OTHER, FAR]], *sinks))
    assert in_place(found)
    (route,) = found.routes
    assert (route.transport, route.devices) == ("cuda_ipc", (OWN, *(device for device, _ in sinks)))


def test_given_several_trainers_then_each_serves_what_it_owns_from_its_own_gpu() -> None:
    found = made(lent(OWN, OTHER), fleet([[OWN, OTHER]] * 2, (OWN, (OTHER,)), (OTHER, (OWN,))))
    assert in_place(found)
    assert {route.ranks[0]: route.devices[0] for route in found.routes} == {0: OWN, 1: OTHER}


def test_given_a_peer_without_access_then_tensors_go_another_way_and_the_notes_say_why() -> None:
    found = made(lent(OWN), fleet([[OWN, OTHER]], (OWN, ()), (OTHER, ())))
    assert [route.transport for route in found.routes] != ["cuda_ipc"]
    assert all(bucket.fill_slot != IN_PLACE for bucket in found.buckets)
    assert "the tensors of source 0 pass through slots: the GPUs of sinks [2] cannot read theirs" in found.notes
    assert any("cuda_ipc: sinks are on 2 GPUs, and source 0 uses none" in note for note in found.notes)


def test_given_a_peer_that_cannot_read_the_trainers_gpu_then_slots_are_on_its_own() -> None:
    found = made(lent(OWN), fleet([[OWN, OTHER]], (OTHER, ())), "cuda_ipc")
    assert found.routes[0].devices == (OTHER, OTHER)
    assert all(bucket.fill_slot != IN_PLACE for bucket in found.buckets)


def test_given_memory_that_cuda_cannot_export_then_the_notes_say_so() -> None:
    found = made(lent(OWN, reason="expandable_segments"), fleet([[OWN]], (OWN, ())))
    assert "the tensors of source 0 pass through slots: expandable_segments" in found.notes


def test_given_a_plan_that_shows_tensors_to_a_gpu_that_cannot_read_them_then_the_proof_fails() -> None:
    found = made(lent(OWN), fleet([[OWN]], (OTHER, (OWN,))))
    blind = fleet([[OWN]], (OTHER, ()))
    with pytest.raises(PlanError, match=r"which the GPUs of ranks \[1\] cannot read"):
        verify(replace(found, topology=blind))


@pytest.mark.parametrize("change", [{"maps_memory": False}, {"devices": (OTHER, OTHER)}])
def test_given_a_plan_that_sends_tensors_that_lie_apart_in_another_way_then_the_proof_fails(
    change: dict[str, object],
) -> None:
    found = made(lent(OWN), fleet([[OWN]], (OTHER, (OWN,))))
    with pytest.raises(PlanError, match=r"route 0 does not map that|without a ring to receive into"):
        verify(replace(found, routes=tuple(replace(route, **change) for route in found.routes)))


def test_given_weights_that_are_read_on_gpus_then_a_bucket_is_as_long_as_a_ring() -> None:
    """Nothing is brought anywhere before it is read, so fewer buckets cost no memory, and save control."""
    found = made(lent(OWN), fleet([[OWN]], (OWN, ())))
    (bucket,) = found.buckets
    assert bucket.nbytes > 1 << 18
