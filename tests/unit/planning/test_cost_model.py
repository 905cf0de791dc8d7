"""The cost model counts what crosses which link, with all links that a plan uses at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from ckpt_transport.memory import MemoryKind, StridedRange
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
    Share,
    TensorSpec,
    Topology,
    digest_of,
    explain,
    plan,
)
from ckpt_transport.rates import HostLink, HostRates, LinkKind, LinkRate
from ckpt_transport.transports.interface import FanOut, Reach, Traits
from ckpt_transport_cuda_ipc import CudaIpcTransport
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_nccl import NcclTransport
from ckpt_transport_shm import ShmTransport
from tests.unit.worlds import PLENTY, traits

KNOWN: Mapping[str, Traits] = {
    kind.name: kind.traits for kind in (CudaIpcTransport, GlooTransport, NcclTransport, ShmTransport)
}
DESIGN = Path(__file__).parents[3] / "docs/explanation/design.md"
GB = 10**9
FILLING = 0.1
"""Filling and draining the pipeline takes less than that part of a plan's time here."""


def host(memory: float = 10, **others: float) -> HostRates:
    """A host's rates in GB/s: of its memory, and of others by ``LOOPBACK``, ``NETWORK``."""
    links = {HostLink(LinkKind.MEMORY): memory, **{HostLink(LinkKind[kind]): rate for kind, rate in others.items()}}
    return HostRates(tuple(LinkRate(link, rate * GB) for link, rate in links.items()))


def with_gpus(*gpus: str, pcie: float = 50, within: float = 2000, peer: float = 300) -> HostRates:
    """A host whose GPUs have these rates in GB/s."""
    links = {HostLink(LinkKind.MEMORY): 100.0}
    for gpu in gpus:
        links |= {HostLink(LinkKind.TO_DEVICE, target=gpu): pcie, HostLink(LinkKind.FROM_DEVICE, source=gpu): pcie}
        links |= {HostLink(LinkKind.DEVICE, gpu, gpu): within}
        links |= {HostLink(LinkKind.PEER, gpu, other): peer for other in gpus if other != gpu}
    return HostRates(tuple(LinkRate(link, rate * GB) for link, rate in links.items()))


def version(*nbytes: int, kind: MemoryKind = MemoryKind.SHARED) -> Manifest:
    """Each source owns so many bytes, in tensors of 10 MB."""
    piece = 10**7
    tensors = tuple(
        PlacedTensor(TensorSpec(f"{owner}.{number}", "U8", (piece,)), owner, number * piece, piece)
        for owner, own in enumerate(nbytes)
        for number in range(own // piece)
    )
    return Manifest("step-1", tuple(Extent(owner, own, kind) for owner, own in enumerate(nbytes)), tensors)


def ranks(sources: list[tuple[str, str]], sinks: list[tuple[str, str]]) -> Topology:
    """Sources and sinks, each on a host and a GPU, if any."""
    members = [(Role.SOURCE, *where) for where in sources] + [(Role.SINK, *where) for where in sinks]
    return Topology(
        tuple(
            RankInfo(rank, role, on, PLENTY, tuple(KNOWN), devices=(gpu,) if gpu else ())
            for rank, (role, on, gpu) in enumerate(members)
        )
    )


def made(manifest: Manifest, topology: Topology, rates: MeasuredRates = NOT_MEASURED, transport: str = "auto") -> Plan:
    return plan(manifest, topology, KNOWN, Settings(transport=transport), rates)


def takes(found: Plan, seconds: float) -> bool:
    """Whether that is predicted, and a little for filling and draining."""
    return seconds <= found.prediction.seconds < seconds * (1 + FILLING)


def test_given_sinks_that_read_in_place_then_they_share_the_memory_of_their_host() -> None:
    rates = {"a": host(10, LOOPBACK=3)}
    alone = made(version(GB), ranks([("a", "")], [("a", "")]), rates)
    both = made(version(GB), ranks([("a", "")], [("a", ""), ("a", "")]), rates)
    assert [route.transport for found in (alone, both) for route in found.routes] == ["shm", "shm"]
    assert takes(alone, 0.1)
    assert takes(both, 0.2)
    assert (both.prediction.link, both.prediction.measured) == ("host memory of a", True)
    assert both.prediction.nbytes == 2 * GB
    assert both.prediction.rate == pytest.approx(10 * GB)


def test_given_private_memory_then_copying_it_into_slots_counts_as_well() -> None:
    fleet, rates = ranks([("a", "")], [("a", "")]), {"a": host(10)}
    private = made(version(GB, kind=MemoryKind.PRIVATE), fleet, rates)
    assert private.routes[0].transport == "shm"
    assert takes(private, 0.2)


def test_given_one_host_then_shared_memory_is_cheaper_than_sockets_whatever_loopback_brings() -> None:
    for loopback in (0.5, 3, 50):
        rates = {"a": host(10, LOOPBACK=loopback)}
        fleet = ranks([("a", "")], [("a", ""), ("a", "")])
        assert made(version(GB), fleet, rates).routes[0].transport == "shm"
        assert made(version(GB), fleet, rates, "gloo").prediction.seconds > 0.4


def test_given_two_sources_beside_two_gpus_then_each_way_to_a_gpu_carries_everything_once() -> None:
    """Given half of a version in each source, when every worker needs all, then PCIe to either GPU is busy with it."""
    rates = {"a": with_gpus("x", "y")}
    fleet = ranks([("a", "x"), ("a", "y")], [("a", "x"), ("a", "y")])
    found = made(version(8 * GB, 8 * GB), fleet, rates, "shm")
    assert takes(found, 16 / 50)
    assert found.prediction.link in ("a to GPU x", "a to GPU y")


def test_given_two_sources_and_workers_that_read_each_others_gpu_then_the_plan_explains_itself_as_the_docs_show() -> (
    None
):
    fleet = ranks([("a", "x"), ("a", "y")], [("a", "x"), ("a", "y")])
    apart = made(version(8 * GB, 8 * GB), fleet, {"a": with_gpus("x", "y")})
    assert {route.transport for route in apart.routes} == {"nccl", "cuda_ipc"}
    reading = Topology(
        tuple(replace(rank, reads=("x", "y")) if rank.role is Role.SINK else rank for rank in fleet.participants)
    )
    found = made(version(8 * GB, 8 * GB), reading, {"a": with_gpus("x", "y")})
    _, _, shown = DESIGN.read_text(encoding="utf-8").partition("`explain(plan)` says:\n\n```text\n")
    lines = shown.partition("\n```")[0].splitlines()
    assert len(lines) == 12
    assert [line for line in explain(found).splitlines() if line in lines] == lines


def test_given_gpus_that_need_their_shares_then_each_is_brought_it_over_a_link_of_its_own_and_all_are_shown() -> None:
    whole = version(8 * GB)
    rates = {"a": with_gpus("x", "y")}
    fleet = ranks([("a", "x")], [("a", "x"), ("a", "y")])
    names = [tensor.spec.name for tensor in whole.tensors]
    digest = digest_of(whole.specs.values())
    halves = tuple(Share(digest, tuple((name, 0, 10**7) for name in sorted(names[half::2]))) for half in range(2))
    members = tuple(replace(rank, share=rank.rank - 1) if rank.rank else rank for rank in fleet.participants)
    sharing = Topology(members, halves)
    everything, shares = made(whole, fleet, rates, "shm"), made(whole, sharing, rates, "shm")
    assert not shares.moves_shares
    assert shares.bytes_to == {1: 4 * GB, 2: 4 * GB}
    assert takes(everything, 8 / 50)
    assert takes(shares, 4 / 50)


def test_given_ranks_that_read_columns_where_they_lie_then_half_of_the_bytes_are_counted_and_all_are_shown() -> None:
    whole = version(8 * GB)
    fleet, rates = ranks([("a", "")], [("a", ""), ("a", "")]), {"a": host(10)}
    digest = digest_of(whole.specs.values())
    ranges = tuple((name, 0, 10**7) for name in sorted(tensor.spec.name for tensor in whole.tensors))
    halves = tuple(
        Share(digest, ranges, tuple((name, StridedRange(half * 500, 500, 10**4, 1000)) for name, _, _ in ranges))
        for half in range(2)
    )
    members = tuple(replace(rank, share=rank.rank - 1) if rank.rank else rank for rank in fleet.participants)
    everything, shares = made(whole, fleet, rates, "shm"), made(whole, Topology(members, halves), rates, "shm")
    assert not shares.moves_shares
    assert takes(everything, 16 / 10)
    assert takes(shares, 8 / 10)
    assert shares.bytes_to == {1: 4 * GB, 2: 4 * GB}


def test_given_two_sources_on_hosts_of_their_own_then_they_send_at_the_same_time() -> None:
    wire = {"wire": traits(bandwidth=1e9, latency=0.0)}
    sink = RankInfo(2, Role.SINK, "c", PLENTY, ("wire",))
    sources = tuple(RankInfo(rank, Role.SOURCE, on, PLENTY, ("wire",)) for rank, on in enumerate("ab"))
    both = plan(version(GB, GB), Topology((*sources, sink)), wire, Settings())
    assert both.prediction.link == "what rank 2 receives"
    sinks = (sink, replace(sink, rank=3, host="d"))
    shares = tuple(
        Share(digest_of(version(GB, GB).specs.values()), tuple((f"{owner}.{n}", 0, 10**7) for n in range(100)))
        for owner in range(2)
    )
    sharing = Topology((*sources, *(replace(each, share=n) for n, each in enumerate(sinks))), shares)
    apart = plan(version(GB, GB), sharing, wire, Settings())
    assert takes(apart, 1.0)


def test_given_a_host_with_a_slow_network_then_a_relay_crosses_it_once_and_the_plan_names_it() -> None:
    """Given four sinks on the host with the slow network, then one of them gets the bytes and passes them on."""
    rates = {"a": host(10, NETWORK=12.5), "b": host(10, NETWORK=0.125)}
    fleet = ranks([("a", "")], [("b", "")] * 4)
    known = {name: KNOWN[name] for name in ("gloo", "shm")}
    found = plan(version(GB), fleet, known, Settings(), rates)
    assert found.notes[0] == "transport gloo+shm"
    assert takes(found, 8.0)
    assert found.prediction.link == "network into b"
    assert "expected  8 s; " in explain(found)
    assert "network into b is busy for 8 s, 953.7 MiB at 0.125 GB/s (measured)" in explain(found)
    assert plan(version(GB), fleet, known, Settings(transport="gloo"), rates).prediction.seconds > 32


def test_given_a_broadcast_that_members_pass_on_then_it_enters_their_host_once() -> None:
    """Given four GPUs on the host with the slow network, then NCCL's ring brings the bytes there once."""
    rates = {"a": with_gpus("A0"), "b": with_gpus("B0", "B1", "B2", "B3")}
    slow = {HostLink(LinkKind.NETWORK): 0.125 * GB}
    known = {
        name: HostRates((*found.links, *(LinkRate(link, rate) for link, rate in slow.items())))
        for name, found in rates.items()
    }
    fleet = ranks([("a", "A0")], [("b", f"B{number}") for number in range(4)])
    found = plan(version(GB), fleet, {"nccl": KNOWN["nccl"]}, Settings(), known)
    assert takes(found, 8.0)


def test_given_a_participant_that_says_how_fast_its_link_is_then_that_counts() -> None:
    fleet = ranks([("a", "")], [("b", ""), ("c", "")])
    slow = tuple(replace(rank, link=10**8) if rank.rank == 2 else rank for rank in fleet.participants)
    found = plan(version(GB), Topology(slow), {"gloo": KNOWN["gloo"]}, Settings())
    assert found.prediction.link == "what rank 2 receives"
    assert takes(found, 10)


def test_given_a_relay_then_its_hops_work_at_the_same_time() -> None:
    """Given a wire as slow as the copies within the host behind it, then the plan takes as long as one of both."""
    post = {"wire": traits(bandwidth=1e9, latency=0.0), "post": traits(reach=Reach.HOST, bandwidth=1e9, latency=0.0)}
    members = [(Role.SOURCE, "a"), (Role.SINK, "b"), (Role.SINK, "b")]
    fleet = Topology(tuple(RankInfo(n, role, on, PLENTY, tuple(post)) for n, (role, on) in enumerate(members)))
    assert takes(plan(version(GB), fleet, post, Settings(transport="wire+post")), 1.0)


def test_given_gpus_that_map_each_others_memory_then_a_broadcast_counts_on_what_they_bring() -> None:
    rates = {"a": with_gpus("x", "y")}
    fleet = ranks([("a", "x")], [("a", "y")])
    measured = made(version(30 * GB, kind=MemoryKind.CUDA), fleet, rates, "nccl")
    assumed = made(version(30 * GB, kind=MemoryKind.CUDA), fleet, NOT_MEASURED, "nccl")
    assert takes(measured, 30 / 300)
    assert takes(assumed, 30 / 20)
    assert measured.prediction.measured
    assert not assumed.prediction.measured


def test_given_lent_tensors_on_a_gpu_then_filling_slots_there_is_a_copy_within_it() -> None:
    rates = {"a": with_gpus("x")}
    found = made(version(16 * GB, kind=MemoryKind.SCATTERED), ranks([("a", "x")], [("a", "x")]), rates)
    assert found.routes[0].transport == "cuda_ipc"
    assert takes(found, 32 / 2000)
    assert found.prediction.link == "memory of GPU x"


def test_given_a_host_that_was_not_measured_then_the_plan_says_so_and_what_to_do() -> None:
    fleet = ranks([("a", "")], [("b", "")])
    known = {"gloo": KNOWN["gloo"]}
    told = "links of 1 host were not measured, so assumed rates count: 'ckpt-transport transports --measure'"
    half = plan(version(GB), fleet, known, Settings(), {"a": host()})
    assert any(note.startswith(told) for note in half.notes)
    full = plan(version(GB), fleet, known, Settings(), {"a": host(), "b": host()})
    assert not any("not measured" in note for note in full.notes)


@pytest.mark.parametrize("fan_out", FanOut)
def test_given_more_sinks_then_no_prediction_is_earlier(fan_out: FanOut) -> None:
    known = {"wire": traits(fan_out=fan_out)}
    seconds = []
    for count in (1, 2, 5):
        members = [RankInfo(0, Role.SOURCE, "a", PLENTY, ("wire",))]
        members += [RankInfo(n, Role.SINK, f"h{n}", PLENTY, ("wire",)) for n in range(1, count + 1)]
        seconds.append(plan(version(GB), Topology(tuple(members)), known, Settings()).prediction.seconds)
    assert seconds == sorted(seconds)


def test_given_digests_then_owner_and_sinks_read_each_bucket_once_more() -> None:
    fleet, rates = ranks([("a", "")], [("a", ""), ("a", "")]), {"a": host(10)}
    found = plan(version(GB), fleet, KNOWN, Settings(digests=True), rates)
    assert takes(found, 0.1 * (2 + 3))
    on_gpu = ranks([("a", "x")], [("a", "x")])
    assert takes(plan(version(50 * GB), on_gpu, KNOWN, Settings(digests=True), {"a": with_gpus("x")}), 1.0)
