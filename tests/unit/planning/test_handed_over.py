"""Given tensors in memory that a trainer hands over as open files, then sinks that can be handed it map it."""

from __future__ import annotations

from typing import Any

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
from ckpt_transport_shm import ShmTransport
from tests.unit.any_schedule import simulate

replace = msgspec.structs.replace
TRAITS = {kind.name: kind.traits for kind in (CudaIpcTransport, GlooTransport, ShmTransport)}
NBYTES = 100_000
OWN, OTHER = "gpu a", "gpu b"


def lent() -> Manifest:
    """A source has four tensors on its GPU, in memory that it hands over."""
    tensors = tuple(
        PlacedTensor(TensorSpec(f"{number}", "U8", (NBYTES,)), 0, number * 100_096, NBYTES) for number in range(4)
    )
    return Manifest("step-1", (Extent(0, 4 * 100_096, MemoryKind.PAGED, OWN),), tensors)


def fleet(*sinks: dict[str, Any]) -> Topology:
    common: dict[str, Any] = {"host": "here", "budget": 1 << 30, "transports": tuple(TRAITS), "files": "one user"}
    on_gpu: dict[str, Any] = {**common, "devices": (OWN,)}
    source = RankInfo(0, Role.SOURCE, **{**common, "devices": (OWN, OTHER)})
    return Topology((source, *(RankInfo(1 + n, Role.SINK, **on_gpu | own) for n, own in enumerate(sinks))))


def made(topology: Topology, transport: str = "auto") -> Plan:
    found = plan(lent(), topology, TRAITS, Settings(transport=transport, bucket_bytes=1 << 18))
    verify(found)
    simulate(found, 1)
    return found


@pytest.mark.parametrize("sinks", [[{}], [{}, {}], [{"devices": (OTHER,), "reads": (OWN,)}]])
def test_given_sinks_that_can_be_handed_it_then_no_byte_is_copied_before_they_read_it(
    sinks: list[dict[str, Any]],
) -> None:
    found = made(fleet(*sinks))
    assert not found.rings
    assert all(bucket.fill_slot == bucket.slot == IN_PLACE for bucket in found.buckets)
    assert {route.transport for route in found.routes} == {"cuda_ipc"}


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"unmapped": "cuMemMap: no"}, "sink 2 does not map what it is handed: cuMemMap: no"),
        ({"files": "another"}, "sink 2 is of another user or network namespace, and cannot be handed their memory"),
        ({"files": ""}, "sink 2 is of another user or network namespace, and cannot be handed their memory"),
        ({"devices": (OTHER,)}, "the GPUs of sinks [2] cannot read theirs"),
    ],
)
@pytest.mark.parametrize("transport", ["auto", "cuda_ipc"])
def test_given_one_sink_that_cannot_then_tensors_pass_through_slots_and_the_notes_say_why(
    own: dict[str, Any], why: str, transport: str
) -> None:
    if "devices" in own and transport == "cuda_ipc":
        pytest.skip("cuda_ipc does not reach both then")
    found = made(fleet({}, own), transport)
    assert all(bucket.fill_slot != IN_PLACE for bucket in found.buckets)
    assert f"the tensors of source 0 pass through slots: {why}" in found.notes


@pytest.mark.parametrize("own", [{"unmapped": "no"}, {"files": "another"}, {"host": "there"}])
def test_given_a_plan_that_hands_it_to_who_cannot_map_it_then_the_proof_fails(own: dict[str, Any]) -> None:
    found = made(fleet({}))
    with pytest.raises(PlanError, match="bucket 0 is to be mapped where it lies: sink 1"):
        verify(replace(found, topology=fleet(own)))
