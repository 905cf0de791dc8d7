"""Given tensors in private memory of a trainer, then sinks that may read it do so where they lie."""

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
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_shm import ShmTransport
from tests.unit.any_schedule import simulate

replace = msgspec.structs.replace
TRAITS = {kind.name: kind.traits for kind in (GlooTransport, ShmTransport)}
NBYTES = 100_000


def lent(owners: int) -> Manifest:
    """Every source has four tensors in its private memory."""
    extents = tuple(Extent(owner, 4 * 100_096, MemoryKind.READABLE) for owner in range(owners))
    tensors = tuple(
        PlacedTensor(TensorSpec(f"{owner}.{number}", "U8", (NBYTES,)), owner, number * 100_096, NBYTES)
        for owner in range(owners)
        for number in range(4)
    )
    return Manifest("step-1", extents, tensors)


def fleet(owners: int, *sinks: dict[str, Any]) -> Topology:
    common: dict[str, Any] = {"host": "here", "budget": 1 << 30, "transports": tuple(TRAITS), "processes": "one user"}
    sources = [RankInfo(rank, Role.SOURCE, **common) for rank in range(owners)]
    return Topology((*sources, *(RankInfo(owners + n, Role.SINK, **common | own) for n, own in enumerate(sinks))))


def made(version: Manifest, topology: Topology, transport: str = "auto") -> Plan:
    found = plan(version, topology, TRAITS, Settings(transport=transport, bucket_bytes=1 << 18))
    verify(found)
    simulate(found, 1)
    return found


def in_place(found: Plan) -> bool:
    return not found.rings and all(map(found.lies_apart, found.buckets))


@pytest.mark.parametrize("owners", [1, 4])
@pytest.mark.parametrize("sinks", [1, 3])
def test_given_sinks_that_may_read_the_trainers_then_no_byte_is_copied_before_they_read_it(
    owners: int, sinks: int
) -> None:
    found = made(lent(owners), fleet(owners, *[{}] * sinks))
    assert in_place(found)
    assert {route.transport for route in found.routes} == {"shm"}


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"unread": "its engine must be given its tensors"}, "does not read them into place: its engine must be given"),
        ({"processes": "another user"}, "sink 2 is of another user or container, and may not read their process"),
        ({"processes": ""}, "sink 2 is of another user or container, and may not read their process"),
    ],
)
def test_given_one_sink_that_does_not_read_the_trainers_then_tensors_pass_through_slots_and_the_notes_say_why(
    own: dict[str, Any], why: str
) -> None:
    found = made(lent(1), fleet(1, {}, own), "shm")
    assert all(bucket.fill_slot != IN_PLACE for bucket in found.buckets)
    assert any(note.startswith("the tensors of source 0 pass through slots: ") and why in note for note in found.notes)


def test_given_another_host_then_what_goes_there_passes_through_slots() -> None:
    found = made(lent(1), fleet(1, {}, {"host": "there"}))
    assert all(bucket.fill_slot != IN_PLACE for bucket in found.buckets)


@pytest.mark.parametrize("own", [{"unread": "no"}, {"processes": "another user"}, {"host": "there"}])
def test_given_a_plan_that_has_tensors_read_by_who_may_not_then_the_proof_fails(own: dict[str, Any]) -> None:
    found = made(lent(1), fleet(1, {}))
    with pytest.raises(PlanError, match="bucket 0 is to be read where it lies: sink 1"):
        verify(replace(found, topology=fleet(1, own)))


def test_given_a_plan_that_sends_tensors_that_lie_apart_in_another_way_then_the_proof_fails() -> None:
    found = made(lent(1), fleet(1, {}))
    routes = tuple(replace(route, maps_memory=False) for route in found.routes)
    with pytest.raises(PlanError, match=r"route 0 does not read it there|without a ring to receive into"):
        verify(replace(found, routes=routes))
