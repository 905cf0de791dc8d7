"""Plans in small worlds, whose times are counted by hand: links of 1 MiB/s, buckets of 1 MiB."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.execution import StageEvent
from ckpt_transport.planning import StageKind
from ckpt_transport.simulator import Death, simulate, world_of
from ckpt_transport.simulator.cluster import Cluster, Costs, HostLinks, Racks, Slower, TransportRates
from ckpt_transport.transports.interface import FanOut
from tests.unit.simulator.small import FREE, MIB, cluster, planned, world

CLOSE = pytest.approx


def test_given_one_far_sink_then_an_update_takes_as_long_as_its_bytes_need() -> None:
    # Rank 0 is the source on host 0, rank 1 the sink beside it, rank 2 the one on host 1.
    of = world(cluster(2))
    run = simulate(planned(of, 8, "gloo+shm"), of)
    assert run.complete
    assert run.seconds == CLOSE(8, rel=1e-3)
    assert run.resources[0].name == "network out of host0" or "NIC 0" in run.resources[0].name


def test_given_two_far_sinks_by_one_sender_then_its_nic_is_shared() -> None:
    of = world(cluster(3))
    run = simulate(planned(of, 8, "gloo+shm"), of)
    assert run.seconds == CLOSE(16, rel=1e-3)
    assert "out of host0" in run.resources[0].name
    assert run.resources[0].nbytes == CLOSE(16 * MIB)


def test_given_a_chain_then_it_takes_one_bucket_more_for_each_hop() -> None:
    of = world(cluster(4))
    run = simulate(planned(of, 8, "gloo-chain+shm"), of)
    assert run.seconds == CLOSE(8 + 2, rel=1e-3)


def test_given_a_binomial_tree_then_the_sender_sends_to_as_many_as_it_has_levels() -> None:
    of = world(cluster(4), fan_out=FanOut.TREE)
    run = simulate(planned(of, 1, "gloo+shm"), of)
    # Of members 0 1 2 3, 0 sends to 1 and 2 at half the rate each, and 1 to 3.
    assert "out of host0" in run.resources[0].name
    assert run.resources[0].nbytes == CLOSE(2 * MIB)
    assert run.seconds == CLOSE(3, rel=1e-3)


@pytest.mark.parametrize(("buffered", "seconds"), [(0, 16), (MIB // 2, 12.5), (MIB, 9), (4 * MIB, 9)])
def test_given_a_chain_with_one_slot_then_it_receives_while_a_connection_sends_what_it_took_in(
    buffered: int, seconds: float
) -> None:
    of = world(cluster(3, transport={"gloo": TransportRates(buffered=buffered)}))
    run = simulate(planned(of, 8, "gloo-chain+shm", ring_depth=1), of)
    # A bucket crosses two links, a second each; the next one waits for what finds no room on the way.
    assert run.complete
    assert run.seconds == CLOSE(seconds, rel=1e-3)


@pytest.mark.parametrize(("at_once", "least", "most"), [(0, 8, 8 * 3 / 2), (2, (8 - 2) * 3, (8 - 1) * 3)])
def test_given_few_transfers_at_once_then_a_fast_receiver_is_hardly_ahead_of_a_slow_one(
    at_once: int, least: float, most: float
) -> None:
    slow = Slower(hosts=(1,), nic=MIB / 3)
    of = world(cluster(3, slower=(slow,)), fan_out=FanOut.TREE, at_once=at_once)
    run = simulate(planned(of, 8, "gloo+shm", ring_depth=8), of, shown=(2, 3))
    ends = {event.rank: event.end for event in run.timeline if event.kind is StageKind.APPLY}
    # A bucket takes three seconds to the slow one, and half as long to the other beside it.
    assert ends[2] == CLOSE(8 * 3, rel=1e-3)
    assert least <= ends[3] <= most + 1e-3


def test_given_a_tree_then_the_fourth_member_gets_everything_from_the_second() -> None:
    of = world(cluster(4, slower=(Slower(hosts=(1,), nic=MIB / 4),)), fan_out=FanOut.TREE)
    run = simulate(planned(of, 8, "gloo+shm", ring_depth=8), of, shown=(2, 3, 4))
    ends = {event.rank: event.end for event in run.timeline if event.kind is StageKind.APPLY}
    assert ends[3] < ends[4] / 2, "the second is slow"


def test_given_a_tree_with_one_slot_then_who_passes_a_bucket_on_receives_the_next_one_afterwards() -> None:
    of = world(cluster(4), fan_out=FanOut.TREE)
    deep, shallow = (simulate(planned(of, 8, "gloo+shm", ring_depth=depth), of) for depth in (4, 1))
    # Of members 0 1 2 3, 1 gets a bucket at half the rate of a link, and takes a second to send it on.
    assert deep.seconds == CLOSE(8 * 2 + 1, rel=1e-3)
    assert shallow.seconds > 8 * 2 + 4


@pytest.mark.parametrize(("depth", "seconds"), [(1, 8 * 1.25), (4, 8 + 0.25)])
def test_given_a_sender_that_is_told_of_room_first_then_only_one_slot_waits_for_that(
    depth: int, seconds: float
) -> None:
    of = world(cluster(2, transport={"gloo": TransportRates(turnaround=0.25)}))
    run = simulate(planned(of, 8, "gloo+shm", ring_depth=depth), of)
    assert run.seconds == CLOSE(seconds, rel=1e-3)


@pytest.mark.parametrize(("depth", "seconds"), [(1, 8 * 2 + 7 * 0.25), (4, 8 + 1)])
def test_given_slots_that_are_mapped_then_only_one_slot_waits_until_it_is_known_to_be_read(
    depth: int, seconds: float
) -> None:
    links = HostLinks(nic=MIB, memory=MIB, to_device=MIB, device=MIB)
    told = {"cuda_ipc": TransportRates(turnaround=0.25)}
    of = world_of(
        Cluster(hosts=1, links=links, transports=("cuda_ipc",), gpus=1, sinks=1, costs=FREE, transport=told), 1
    )
    run = simulate(planned(of, 8, "cuda_ipc", ring_depth=depth), of)
    # Each bucket is filled in a second and applied in another; nobody waits for the last slot.
    assert run.seconds == CLOSE(seconds, rel=1e-3)


def test_given_a_ring_of_one_slot_then_apply_and_transfer_run_in_lock_step() -> None:
    of = world(cluster(2, memory=MIB))
    deep, shallow = (simulate(planned(of, 8, "gloo+shm", ring_depth=depth), of) for depth in (4, 1))
    # Each bucket crosses the wire in a second and is applied in another.
    assert deep.seconds == CLOSE(8 + 1, rel=1e-3)
    assert shallow.seconds == CLOSE(8 + 8, rel=1e-3)


def test_given_racks_with_one_uplink_then_hosts_of_a_rack_share_it() -> None:
    plain = world(cluster(4, nic=4 * MIB))
    narrow = world(cluster(4, nic=4 * MIB, racks=Racks(hosts=2, uplink=MIB)))
    assert simulate(planned(plain, 4, "gloo+shm"), plain).seconds == CLOSE(3, rel=1e-3)
    run = simulate(planned(narrow, 4, "gloo+shm"), narrow)
    # Two copies go from the first rack to the second one.
    assert run.seconds == CLOSE(8, rel=1e-3)
    assert "uplinks" in run.resources[0].name


def test_given_a_straggler_then_the_chain_is_as_slow_as_it() -> None:
    of = world(cluster(4, slower=(Slower(hosts=(2,), times=4.0),)))
    run = simulate(planned(of, 8, "gloo-chain+shm"), of)
    assert run.seconds == CLOSE(8 * 4 + 1 + 4, rel=1e-3)
    assert "host2" in run.slowest


def test_given_processors_that_need_a_time_per_bucket_then_they_are_what_the_update_waits_for() -> None:
    costs = Costs(network=0, bucket=2.0, receiver=0, apply=0)
    of = world(cluster(2, costs=costs))
    run = simulate(planned(of, 8, "gloo+shm"), of)
    # The source takes part in two transfers of each bucket: one by shared memory, one by the network.
    assert run.resources[0].name == "transfers of rank 0"
    assert run.seconds >= 8 * 2 * 2.0


def test_given_a_member_that_dies_then_the_rest_notice_and_nothing_that_needs_it_ends() -> None:
    of = world(cluster(4))
    plan = planned(of, 8, "gloo-chain+shm")
    run = simulate(plan, of, death=Death(rank=2, seconds=3.5, noticed=5.0))
    assert not run.complete
    assert run.seconds == CLOSE(8.5)
    assert 0 < run.applied < run.applies
    after = simulate(plan, of, death=Death(rank=2, seconds=100.0, noticed=5.0))
    assert after.complete
    assert after.seconds == CLOSE(10, rel=1e-3)


def test_given_ranks_that_are_shown_then_the_timeline_has_their_stages() -> None:
    of = world(cluster(2))
    run = simulate(planned(of, 4, "gloo+shm"), of, shown=(2,))
    assert {event.rank for event in run.timeline} == {2}
    applies = [event for event in run.timeline if event.kind is StageKind.APPLY]
    assert [event.bucket for event in applies] == [0, 1, 2, 3]
    assert max(event.end for event in applies) == CLOSE(run.seconds)
    assert all(isinstance(event, StageEvent) and event.start <= event.end for event in run.timeline)


@settings(max_examples=25, deadline=None)
@given(
    hosts=st.integers(2, 5),
    buckets=st.integers(1, 6),
    depth=st.integers(1, 4),
    transport=st.sampled_from(["gloo+shm", "gloo-chain+shm"]),
    tree=st.booleans(),
)
def test_given_any_small_plan_then_every_byte_arrives_and_none_faster_than_a_link(
    hosts: int, buckets: int, depth: int, transport: str, tree: bool
) -> None:
    of = world(cluster(max(hosts, 3)), fan_out=FanOut.TREE if tree else FanOut.LINEAR)
    run = simulate(planned(of, buckets, transport, ring_depth=depth), of)
    assert run.complete
    assert run.applied == buckets * max(hosts, 3)
    into = {each.name: each.nbytes for each in run.resources if each.name.startswith("network into")}
    assert all(nbytes == CLOSE(buckets * MIB) for nbytes in into.values())
    assert all(each.busy <= run.seconds * (1 + 1e-6) for each in run.resources)


@settings(max_examples=25, deadline=None)
@given(hosts=st.integers(3, 5), faster=st.floats(1.0, 4.0), transport=st.sampled_from(["gloo+shm", "gloo-chain+shm"]))
def test_given_faster_nics_then_the_update_takes_less(hosts: int, faster: float, transport: str) -> None:
    slow, fast = world(cluster(hosts)), world(cluster(hosts, nic=faster * MIB))
    plan = planned(slow, 4, transport)
    assert simulate(plan, fast).seconds <= simulate(plan, slow).seconds * (1 + 1e-9)


def test_given_processors_that_take_no_time_then_they_are_not_told_of() -> None:
    of = world(cluster(3, costs=FREE))
    assert not [each for each in simulate(planned(of, 2, "gloo+shm"), of).resources if each.name.startswith("transf")]
