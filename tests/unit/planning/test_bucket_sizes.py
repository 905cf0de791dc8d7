"""Given bytes that pass from GPU to GPU, or beside passes, then buckets are as long as memory and the version allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
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

TRAITS = {kind.name: kind.traits for kind in (CudaIpcTransport, GlooTransport, NcclTransport, ShmTransport)}
MIB, GIB = 1 << 20, 1 << 30
EXPERT = 3 * MIB


def version(nbytes: int, kind: MemoryKind = MemoryKind.EXPORTED) -> Manifest:
    """Experts of a trainer's, on its GPU unless ``kind`` says something else."""
    count = max(nbytes // EXPERT, 1)
    size = min(nbytes, EXPERT) // 256 * 256
    tensors = [
        PlacedTensor(TensorSpec(f"experts.{number}", "U8", (size,)), 0, number * size, size) for number in range(count)
    ]
    return Manifest(
        "step-1",
        (Extent(0, count * size, kind, "gpu a" if kind is MemoryKind.EXPORTED else ""),),
        tuple(tensors),
    )


def beside(budget: int, *, whole_tensors: bool = False) -> Topology:
    """A trainer, and an engine on another GPU that does not see the trainer's; so much memory for an update on each."""
    members = RankInfo(0, Role.SOURCE, "host", budget, tuple(TRAITS), devices=("gpu a", "gpu b"))
    engine = RankInfo(1, Role.SINK, "host", budget, tuple(TRAITS), whole_tensors, devices=("gpu b",))
    return Topology((members, engine))


def parts(nbytes: int, sources: int) -> Manifest:
    """Experts in host memory, as many of them with each source."""
    each = nbytes // sources // EXPERT
    tensors = [
        PlacedTensor(TensorSpec(f"{source}.{number}", "U8", (EXPERT,)), source, number * EXPERT, EXPERT)
        for source in range(sources)
        for number in range(each)
    ]
    extents = tuple(Extent(source, each * EXPERT, MemoryKind.SHARED) for source in range(sources))
    return Manifest("step-1", extents, tuple(tensors))


def trainers(sources: int, budget: int = 30 * GIB) -> Topology:
    """A source on each GPU of a host, all of which see all GPUs, and a sink beside each."""
    gpus = tuple(f"gpu {number}" for number in range(sources))
    able = tuple(TRAITS)
    ranks = [RankInfo(rank, Role.SOURCE, "host", budget, able, devices=(gpu,)) for rank, gpu in enumerate(gpus)]
    ranks += [
        RankInfo(sources + number, Role.SINK, "host", budget, able, devices=(gpu,), reads=gpus)
        for number, gpu in enumerate(gpus)
    ]
    return Topology(tuple(ranks))


def made(
    of: Manifest,
    fleet: Topology,
    transport: str = "nccl",
    bucket_bytes: int = 64 * MIB,
    ring_depth: int = 4,
    *,
    beside_passes: bool = False,
) -> Plan:
    settings = Settings(
        transport=transport, bucket_bytes=bucket_bytes, ring_depth=ring_depth, beside_passes=beside_passes
    )
    found = plan(of, fleet, TRAITS, settings)
    verify(found)
    return found


def slot_bytes(found: Plan) -> int:
    (size,) = {ring.slot_bytes for ring in found.rings}
    return size


def test_given_a_large_version_and_much_free_memory_then_a_slot_has_nearly_half_a_gib() -> None:
    for transport in ("nccl", "cuda_ipc"):
        found = made(version(30 * GIB), beside(30 * GIB), transport)
        assert 480 * MIB < slot_bytes(found) <= 512 * MIB
        assert {ring.depth for ring in found.rings} == {4}
        assert len(found.buckets) < 65


def test_given_little_free_memory_then_slots_keep_their_size() -> None:
    assert slot_bytes(made(version(8 * GIB), beside(GIB))) <= 64 * MIB


def test_given_slots_on_the_gpu_of_an_engine_that_has_little_memory_then_they_keep_their_size() -> None:
    """The trainer fills them there, and has much memory itself."""
    trainer, engine = beside(30 * GIB).participants
    poor = Topology((trainer, replace(engine, budget=GIB)))
    assert slot_bytes(made(version(8 * GIB), poor, "cuda_ipc")) <= 64 * MIB


def test_given_a_smaller_version_then_buckets_are_many_enough_for_a_pipeline() -> None:
    found = made(version(8 * GIB), beside(30 * GIB))
    assert 64 * MIB < slot_bytes(found) <= 256 * MIB
    assert len(found.buckets) >= 32
    assert len(made(version(96 * MIB), beside(30 * GIB)).buckets) >= 32


def test_given_bytes_or_slots_in_host_memory_then_buckets_are_as_before() -> None:
    """What comes over PCIe takes longer than the host needs for it at any size."""
    assert slot_bytes(made(version(8 * GIB, MemoryKind.SHARED), beside(30 * GIB))) <= 64 * MIB
    assert slot_bytes(made(version(8 * GIB), beside(30 * GIB), "gloo")) <= 64 * MIB


def test_given_forward_passes_beside_then_what_comes_to_a_gpu_from_the_host_is_longer_too() -> None:
    """Each bucket takes the interpreter from them some twenty times, whatever its size."""
    of, fleet = version(30 * GIB, MemoryKind.SHARED), beside(30 * GIB)
    filled = made(of, fleet, "cuda_ipc", beside_passes=True)
    assert 480 * MIB < slot_bytes(filled) <= 512 * MIB
    brought = made(of, fleet, "shm", beside_passes=True)
    assert not brought.rings
    assert len(brought.buckets) < 65
    assert len(made(of, fleet, "shm").buckets) > 400


@pytest.mark.parametrize(("sources", "most"), [(1, 64), (2, 128), (4, 256), (16, 512)])
def test_given_several_sources_with_parts_in_host_memory_then_a_sink_gets_no_more_buckets_than_of_one(
    sources: int, most: int
) -> None:
    """Each fills slots over a link of its own, so that a sink gets buckets from all of them at the same time."""
    found = made(parts(32 * GIB, sources), trainers(sources), "cuda_ipc")
    assert most * MIB * 0.9 < slot_bytes(found) <= most * MIB


def test_given_several_sources_and_little_free_memory_then_buckets_are_as_before() -> None:
    assert slot_bytes(made(parts(8 * GIB, 4), trainers(4, GIB), "cuda_ipc")) <= 64 * MIB


def test_given_larger_buckets_by_configuration_then_what_a_sink_brings_still_passes_through_two_buffers() -> None:
    of, fleet = version(30 * GIB, MemoryKind.SHARED), beside(64 * GIB)
    found = made(of, fleet, "shm", bucket_bytes=128 * MIB, beside_passes=True)
    assert 480 * MIB < max(bucket.nbytes for bucket in found.buckets) <= 512 * MIB


def test_given_forward_passes_beside_and_little_free_memory_then_what_comes_from_the_host_is_as_before() -> None:
    of, fleet = version(8 * GIB, MemoryKind.SHARED), beside(GIB)
    assert slot_bytes(made(of, fleet, "cuda_ipc", beside_passes=True)) <= 64 * MIB
    assert len(made(of, fleet, "shm", beside_passes=True).buckets) >= 128


def test_given_forward_passes_on_cpus_then_buckets_are_as_before() -> None:
    trainer, engine = beside(30 * GIB).participants
    on_cpus = Topology((replace(trainer, devices=()), replace(engine, devices=())))
    of = version(8 * GIB, MemoryKind.SHARED)
    assert made(of, on_cpus, "shm", beside_passes=True).buckets == made(of, on_cpus, "shm").buckets


def test_given_a_bucket_size_by_configuration_then_it_sets_the_measure() -> None:
    assert slot_bytes(made(version(8 * GIB), beside(30 * GIB), bucket_bytes=8 * MIB)) <= 64 * MIB


@given(
    nbytes=st.integers(1, 256 * MIB),
    budget=st.integers(8 * MIB, 4 * GIB),
    bucket=st.integers(256, 16 * MIB),
    depth=st.integers(1, 6),
    transport=st.sampled_from(["nccl", "cuda_ipc"]),
    whole=st.booleans(),
)
def test_given_any_sizes_then_the_plan_is_proved_and_longer_slots_leave_most_of_the_budget(
    nbytes: int, budget: int, bucket: int, depth: int, transport: str, whole: bool
) -> None:
    found = made(version(nbytes), beside(budget, whole_tensors=whole), transport, bucket_bytes=bucket, ring_depth=depth)
    longest = max(bucket + 256, EXPERT if whole else 0)
    for ring in found.rings:
        assert ring.slot_bytes <= longest or ring.nbytes * 4 <= budget
        assert ring.slot_bytes <= max(longest, 8 * bucket)
