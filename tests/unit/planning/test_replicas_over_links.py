"""Of what several sources have each sends as much as its link carries, so that all links end at about one time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from msgspec.structs import replace

from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    NOT_MEASURED,
    Extent,
    Manifest,
    MeasuredRates,
    PlacedTensor,
    Plan,
    RankInfo,
    Role,
    Settings,
    TensorSpec,
    Topology,
    plan,
    sending_rates,
    spread,
    verify,
)
from ckpt_transport.rates import HostLink, HostRates, LinkKind, LinkRate
from tests.unit.worlds import PLENTY, traits

MB, GB = 10**6, 10**9
TENSORS = 40
WIRE = {"wire": traits(bandwidth=100 * GB, latency=0.0)}


def ranks(*sources: tuple[str, int], sinks: Sequence[str] = ("far",)) -> Topology:
    """Sources, each on a host and with a link in MB/s, which is 0 where nobody said; and sinks on hosts."""
    members = [(Role.SOURCE, host, link * MB) for host, link in sources] + [(Role.SINK, host, 0) for host in sinks]
    return Topology(
        tuple(
            RankInfo(rank, role, host, PLENTY, tuple(WIRE), link=link)
            for rank, (role, host, link) in enumerate(members)
        )
    )


def networks(**hosts: float) -> MeasuredRates:
    """The network of each host, in GB/s."""
    return {host: HostRates((LinkRate(HostLink(LinkKind.NETWORK), rate * GB),)) for host, rate in hosts.items()}


def replicas(sources: int) -> list[Manifest]:
    """All sources have 1 GB, and say that it is equal."""
    size = GB // TENSORS
    names = [f"layer.{number}" for number in range(TENSORS)]
    tensors = tuple(PlacedTensor(TensorSpec(name, "U8", (size,)), 0, n * size, size) for n, name in enumerate(names))
    extent = Extent(0, GB, MemoryKind.SHARED)
    return [
        Manifest("step-1", (replace(extent, owner=rank),), tensors, replicated=tuple(names)) for rank in range(sources)
    ]


def planned(fleet: Topology, rates: MeasuredRates) -> tuple[Plan, Mapping[int, float]]:
    """The proved plan, and which part of the version each source sends."""
    manifest = spread("step-1", replicas(len(fleet.sources)), sending_rates(fleet, rates), (), whole=False)
    made = plan(manifest, fleet, WIRE, Settings(), rates)
    verify(made)
    sent: Counter[int] = Counter()
    for tensor in manifest.tensors:
        sent[manifest.extents[tensor.extent].owner] += tensor.nbytes
    return made, {rank: sent[rank] / GB for rank in fleet.sources}


def about(*parts: float) -> Mapping[int, object]:
    return {rank: pytest.approx(part, abs=0.03) for rank, part in enumerate(parts)}


def test_given_ranks_that_say_how_fast_their_links_are_then_each_sends_in_proportion() -> None:
    fleet = ranks(("a", 400), ("b", 100), ("c", 500))
    made, parts = planned(fleet, NOT_MEASURED)
    assert parts == about(0.4, 0.1, 0.5)
    assert made.prediction.seconds < 1.2


def test_given_a_rank_of_which_nobody_knows_its_link_then_it_sends_as_much_as_the_fastest() -> None:
    _, parts = planned(ranks(("a", 400), ("b", 0), ("c", 200)), NOT_MEASURED)
    assert parts == about(0.4, 0.4, 0.2)


def test_given_hosts_with_unequally_many_ranks_then_their_networks_carry_the_same() -> None:
    """Three ranks share the network of host a, and one has that of host b: shared out by ranks, a's would carry three
    quarters, and the update take half as long again."""
    fleet, known = ranks(*[("a", 0)] * 3, ("b", 0)), networks(a=1, b=1)
    made, parts = planned(fleet, known)
    assert parts == about(1 / 6, 1 / 6, 1 / 6, 1 / 2)
    assert made.prediction.seconds < 0.6
    assert made.prediction.link in {"network out of a", "network out of b"}


def test_given_hosts_with_networks_of_other_rates_then_the_faster_one_carries_more() -> None:
    made, parts = planned(ranks(("a", 0), ("a", 0), ("b", 0)), networks(a=3, b=1))
    assert parts == about(3 / 8, 3 / 8, 1 / 4)
    assert made.prediction.seconds < 0.3


def test_given_a_rank_whose_own_link_is_slower_than_its_hosts_network_then_that_counts() -> None:
    _, parts = planned(ranks(("a", 250), ("b", 0)), networks(a=1, b=1))
    assert parts == about(0.2, 0.8)


def test_given_sinks_on_the_sources_host_then_its_network_does_not_count() -> None:
    fleet = ranks(("a", 0), ("a", 0), ("a", 0), sinks=["a", "a"])
    assert set(sending_rates(fleet, networks(a=1)).values()) == {1.0}
