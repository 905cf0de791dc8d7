"""Given participants with GPUs, then a plan uses transports of GPUs where they reach, and says why not elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from ckpt_transport.errors import ConfigError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    IN_PLACE,
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    RankInfo,
    RingUse,
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

TRAITS = {kind.name: kind.traits for kind in (CudaIpcTransport, GlooTransport, NcclTransport, ShmTransport)}
NBYTES = 16 << 20
MANIFEST = Manifest(
    "step-1",
    (Extent(0, NBYTES, MemoryKind.SHARED),),
    (PlacedTensor(TensorSpec("weight", "U8", (NBYTES,)), 0, 0, NBYTES),),
)


def world(source: tuple[str, ...], *sinks: tuple[str, ...], hosts: int = 1) -> Topology:
    """A source and sinks that use these GPUs, sinks spread over hosts."""
    return ranks([("host 0", source)], [(f"host {number % hosts}", gpus) for number, gpus in enumerate(sinks)])


def ranks(sources: Sequence[tuple[str, tuple[str, ...]]], sinks: Sequence[tuple[str, tuple[str, ...]]]) -> Topology:
    """Sources and sinks on these hosts, with these GPUs."""
    members = [(Role.SOURCE, *where) for where in sources] + [(Role.SINK, *where) for where in sinks]
    return Topology(
        tuple(
            RankInfo(rank, role, host, 1 << 30, tuple(TRAITS), devices=devices)
            for rank, (role, host, devices) in enumerate(members)
        )
    )


def made(topology: Topology, transport: str = "auto") -> Plan:
    found = plan(MANIFEST, topology, TRAITS, Settings(transport=transport))
    verify(found)
    return found


def test_given_sinks_on_the_gpu_of_the_source_then_they_see_its_slots() -> None:
    """Given sinks on the second GPU that the source can use, then its slots are on that one."""
    found = made(world(("gpu a", "gpu b"), ("gpu b",), ("gpu b",)))
    (route,) = found.routes
    assert route.transport == "cuda_ipc"
    assert route.devices == ("gpu b", "gpu b", "gpu b")
    assert found.ring(0, RingUse.FILL) is not None
    assert found.ring(1, RingUse.RECEIVE) is None
    assert all(bucket.slot == IN_PLACE != bucket.fill_slot for bucket in found.buckets)


def test_given_sinks_on_several_gpus_of_one_host_then_they_read_the_memory_of_the_source() -> None:
    found = made(world(("gpu a", "gpu b"), ("gpu a",), ("gpu b",)))
    assert [route.transport for route in found.routes] == ["shm"]
    reason = "cuda_ipc: sinks are on 2 GPUs, and source 0 uses none whose memory all of these can read"
    assert reason in found.notes


@pytest.mark.parametrize(
    "usable",
    [(("gpu a", "gpu b"), ("gpu b", "gpu a")), (("gpu a", "gpu b"), ("gpu a", "gpu b"))],
    ids=["each on a GPU of its own", "both on no GPU of their own"],
)
def test_given_two_sources_beside_gpus_that_read_each_other_then_slots_of_each_are_on_another_gpu(
    usable: Sequence[tuple[str, ...]],
) -> None:
    """So every byte crosses the link of one GPU to the host, and both links are busy."""
    members = ranks([("host 0", gpus) for gpus in usable], [("host 0", ("gpu a",)), ("host 0", ("gpu b",))])
    sinks = (replace(sink, reads=("gpu a", "gpu b")) for sink in members.participants[2:])
    topology = Topology((*members.participants[:2], *sinks))
    half = NBYTES // 2
    manifest = Manifest(
        "step-1",
        tuple(Extent(owner, half, MemoryKind.SHARED) for owner in (0, 1)),
        tuple(PlacedTensor(TensorSpec(str(owner), "U8", (half,)), owner, 0, half) for owner in (0, 1)),
    )
    found = plan(manifest, topology, TRAITS, Settings(transport="cuda_ipc"))
    verify(found)
    assert [route.devices[0] for route in found.routes] == ["gpu a", "gpu b"]


def test_given_sinks_on_other_hosts_then_they_get_a_broadcast_into_slots_on_their_gpus() -> None:
    found = made(world(("gpu a",), ("gpu b",), ("gpu c",), hosts=2))
    (route,) = found.routes
    assert (route.transport, route.devices) == ("nccl", ("gpu a", "gpu b", "gpu c"))
    assert found.ring(2, RingUse.RECEIVE) is not None


def test_given_several_source_ranks_then_they_broadcast_to_each_other_and_share_with_the_workers_on_their_gpus() -> (
    None
):
    """Given a source rank beside every engine worker, then one plan goes from source to source and into each GPU."""
    gpus = [("host 0", ("gpu a",)), ("host 0", ("gpu b",)), ("host 1", ("gpu c",))]
    found = made(ranks(gpus, [*gpus, gpus[2]]), "nccl+cuda_ipc")
    assert [(route.transport, route.ranks) for route in found.routes] == [
        ("nccl", (0, 1, 2)),
        ("cuda_ipc", (0, 3)),
        ("cuda_ipc", (1, 4)),
        ("cuda_ipc", (2, 5, 6)),
    ]
    assert [{leg.sender for leg in hop.legs} for hop in found.hops] == [{0}, {1, 2}]
    assert {(ring.rank, ring.use) for ring in found.rings} == {
        (0, RingUse.FILL),
        (1, RingUse.RECEIVE),
        (2, RingUse.RECEIVE),
    }


def test_given_a_gpu_without_a_source_then_a_worker_there_passes_on() -> None:
    workers = [("host 0", ("gpu a",)), ("host 0", ("gpu b",)), ("host 0", ("gpu b",))]
    found = made(ranks([("host 0", ("gpu a",))], workers), "nccl+cuda_ipc")
    assert [(route.transport, route.ranks) for route in found.routes] == [
        ("nccl", (0, 2)),
        ("cuda_ipc", (0, 1)),
        ("cuda_ipc", (2, 3)),
    ]


@pytest.mark.parametrize(
    ("topology", "transport", "said"),
    [
        (world((), ("gpu a",)), "cuda_ipc", "source 0 cannot use the GPU that sinks are on"),
        (world(("gpu a",), ()), "nccl", "nccl moves GPU memory, and rank 1 has none"),
        (world(("gpu a",), ("gpu b",), ("gpu c",), hosts=2), "cuda_ipc", "sinks .2. are on other hosts"),
        (world(("gpu a",), ("gpu a",)), "nccl", "one rank of each GPU, and ranks .0, 1. share some"),
        (world(("gpu a",), ("gpu a",), ("gpu a",)), "nccl+cuda_ipc", "all sinks are on the GPU of source 0"),
        (world(("gpu a",), ("gpu b",), ("gpu c",)), "nccl+cuda_ipc", "every GPU has one sink"),
        (world(("gpu a",), ("gpu b",), ("gpu b",), hosts=2), "nccl+shm", "do not move the same kind of memory"),
    ],
)
def test_given_a_transport_that_does_not_reach_then_it_is_refused_with_the_reason(
    topology: Topology, transport: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        made(topology, transport)


@pytest.mark.parametrize("large", [256, 16 << 20])
def test_given_what_is_read_in_place_then_only_sinks_on_gpus_have_it_in_buckets_as_short_as_a_slot(large: int) -> None:
    """They bring two of them to the GPU at a time; on the host a bucket is as long as a ring, and no tensor is cut."""
    sizes = [256 << 10] * 32 + [large]
    tensors = [
        PlacedTensor(TensorSpec(f"t{number}", "U8", (nbytes,)), 0, sum(sizes[:number]), nbytes)
        for number, nbytes in enumerate(sizes)
    ]
    manifest = Manifest("step-1", (Extent(0, sum(sizes), MemoryKind.SHARED),), tuple(tensors))
    for gpus, longest in (((), max(4 << 20, large)), (("GPU-a",), 1 << 20)):
        found = plan(manifest, world(gpus, gpus), TRAITS, Settings(transport="shm", bucket_bytes=1 << 20))
        verify(found)
        assert max(bucket.nbytes for bucket in found.buckets) == longest
