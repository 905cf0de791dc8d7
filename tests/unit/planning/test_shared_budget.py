"""What is sent from shared memory only is sent from slots that ``/dev/shm`` has room for, or goes another way."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from ckpt_transport.errors import ConfigError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Manifest, Plan, Settings, Topology, plan, verify
from tests.unit.worlds import INVENTED, manifest, topology

MIB = 1 << 20
DEPTH = 4
TRANSPORTS = {name: INVENTED[name] for name in ("window", "wire")}
VERSION = manifest([MIB] * 64, kind=MemoryKind.PRIVATE)
BESIDE = topology(["a"], ["a"])


def planned(version: Manifest, fleet: Topology, shared: Mapping[int, int], transport: str = "auto") -> Plan:
    """The proved plan for ranks of which some have little shared memory."""
    members = tuple(
        msgspec.structs.replace(member, shared_budget=shared.get(member.rank, member.shared_budget))
        for member in fleet.participants
    )
    settings = Settings(transport=transport, bucket_bytes=16 * MIB, ring_depth=DEPTH)
    made = plan(version, Topology(members, fleet.shares), TRANSPORTS, settings)
    verify(made)
    return made


def ring_bytes(made: Plan) -> dict[int, int]:
    return {ring.rank: ring.nbytes for ring in made.rings}


def test_given_room_for_a_small_ring_then_slots_are_smaller_and_the_plan_says_why() -> None:
    made = planned(VERSION, BESIDE, {0: 20 * MIB})
    assert made.routes[0].transport == "window"
    assert ring_bytes(made)[0] <= 20 * MIB
    assert any("rank 0 has 20,971,520 bytes of shared memory" in reason for reason in made.notes)
    assert ring_bytes(planned(VERSION, BESIDE, {}))[0] > 20 * MIB


def test_given_no_room_for_a_slot_then_another_transport_is_taken_and_the_plan_says_why() -> None:
    made = planned(VERSION, BESIDE, {0: 1000})
    assert made.routes[0].transport == "wire"
    assert any("window: rank 0 has 1,000 bytes of shared memory" in reason for reason in made.notes)


def test_given_a_loader_of_whole_tensors_and_no_room_for_the_largest_then_another_transport_is_taken() -> None:
    version, fleet = manifest([MIB, 8 * MIB], kind=MemoryKind.PRIVATE), topology(["a"], ["a"], whole_tensors=True)
    assert planned(version, fleet, {0: 8 * MIB}).routes[0].transport == "window"
    assert planned(version, fleet, {0: 7 * MIB}).routes[0].transport == "wire"


def test_given_no_room_for_a_slot_and_a_transport_by_name_then_the_error_says_why() -> None:
    with pytest.raises(ConfigError, match="rank 0 has 0 bytes of shared memory"):
        planned(VERSION, BESIDE, {0: 0}, "window")


def test_given_a_version_that_lies_in_shared_memory_then_no_room_is_needed_for_slots() -> None:
    made = planned(manifest([MIB] * 64), BESIDE, {0: 0})
    assert made.routes[0].transport == "window"
    assert not made.rings


def test_given_a_sink_that_passes_on_then_its_ring_fits_its_shared_memory() -> None:
    fleet = topology(["a"], ["b", "b"])
    made = planned(VERSION, fleet, {1: 10 * MIB}, "wire+window")
    assert ring_bytes(made)[1] <= 10 * MIB
    with pytest.raises(ConfigError, match="rank 1 has 10 bytes of shared memory"):
        planned(VERSION, fleet, {1: 10}, "wire+window")
