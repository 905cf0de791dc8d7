"""Whether requests stand still for longer when a version is staged or when it is written in place is predicted."""

from __future__ import annotations

import msgspec
import pytest

from ckpt_transport.planning import Plan, StagingPlace, Topology, expect_pauses, explain
from tests.unit.planning.test_cost_model import GB, host, made, ranks, version, with_gpus

replace = msgspec.structs.replace
RATES = {"a": with_gpus("x", "y")}
"""50 GB/s to and from each GPU, and 2 TB/s within it."""


def to_gpus(nbytes: int, *gpus: str) -> Plan:
    return made(version(nbytes), ranks([("a", "")], [("a", gpu) for gpu in gpus]), RATES, "shm")


def test_given_a_gpu_with_room_then_the_exchange_is_two_copies_within_it_and_shorter_than_the_transfer() -> None:
    expected = expect_pauses(to_gpus(10 * GB, "x"), {1: StagingPlace(10 * GB)}, RATES)
    assert expected.staged is not None
    assert expected.staged.seconds == pytest.approx(2 * 10 / 2000)
    assert expected.in_place.seconds == pytest.approx(10 / 50, rel=0.05)
    assert not expected.in_place_is_shorter


def test_given_a_full_gpu_then_the_exchange_crosses_pcie_both_ways_and_takes_longer_than_the_transfer() -> None:
    """Given 31.2 GB on a link of 55 GB/s, as on an H200, then 0.8 s are expected, and 0.57 in place."""
    rates = {"a": with_gpus("x", "y", pcie=55)}
    plan = made(version(312 * GB // 10), ranks([("a", "")], [("a", "x")]), rates, "shm")
    expected = expect_pauses(plan, {1: StagingPlace(312 * GB // 10, on_host=True)}, rates)
    assert expected.staged is not None
    assert expected.staged.seconds == pytest.approx(0.8, rel=0.01)
    assert expected.in_place.seconds == pytest.approx(31.2 / 55, rel=0.05)
    assert expected.in_place_is_shorter


def test_given_two_gpus_of_which_one_is_full_then_all_stand_still_for_that_one() -> None:
    places = {1: StagingPlace(GB), 2: StagingPlace(GB, on_host=True)}
    expected = expect_pauses(to_gpus(GB, "x", "y"), places, RATES)
    assert expected.staged is not None
    assert expected.staged.link == "a to GPU y and back"
    assert expected.staged.measured


def test_given_sinks_on_one_host_then_their_exchanges_share_its_memory() -> None:
    fleet = ranks([("a", "")], [("a", ""), ("a", "")])
    plan, rates = made(version(GB), fleet, {"a": host(10)}, "shm"), {"a": host(10)}
    expected = expect_pauses(plan, {1: StagingPlace(GB), 2: StagingPlace(GB)}, rates)
    assert expected.staged is not None
    assert expected.staged.seconds == pytest.approx(2 * 2 / 10)


def test_given_a_sink_that_does_not_say_where_it_stages_then_only_the_transfer_is_predicted() -> None:
    plan = to_gpus(GB, "x", "y")
    expected = expect_pauses(plan, {1: StagingPlace(GB)}, RATES)
    assert expected.staged is None
    assert not expected.in_place_is_shorter
    assert "held      in place" in explain(plan, expected)


def test_given_no_measured_rates_then_it_is_told_that_they_are_assumed() -> None:
    topology = Topology(ranks([("a", "")], [("b", "")]).participants)
    plan = made(version(GB), topology, {})
    assert "(assumed rates)" in str(expect_pauses(plan, {1: StagingPlace(GB)}, {}))
