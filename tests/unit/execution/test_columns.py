"""What sinks cut by columns is planned in the order of columns, gathered at the sources, and put where it belongs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.execution import column_extents
from ckpt_transport.memory import Backing, Buffer, MemoryKind, StridedRange
from ckpt_transport.planning import (
    IN_PLACE,
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    RankInfo,
    Role,
    Settings,
    Share,
    TensorSpec,
    Topology,
    digest_of,
    plan,
    verify,
)
from tests.unit.worlds import INVENTED, PLENTY, traits

ITEM = 4
Cut = tuple[int, int]


class Matrix(NamedTuple):
    """A matrix of F32, by which elements sources share it out, and by which columns sinks cut it."""

    rows: int
    columns: int
    held: tuple[int, ...]
    cuts: tuple[Cut, ...]

    @property
    def nbytes(self) -> int:
        return self.rows * self.columns * ITEM


@st.composite
def matrices(draw: st.DrawFn, sources: int, sinks: int) -> Matrix:
    rows, columns = draw(st.integers(2, 9)), draw(st.integers(2, 300))
    inside = st.integers(0, rows * columns)
    held = tuple(sorted([0, *(draw(inside) for _ in range(sources - 1)), rows * columns]))
    starts = [draw(st.integers(0, columns - 1)) for _ in range(sinks)]
    return Matrix(rows, columns, held, tuple((start, draw(st.integers(start + 1, columns))) for start in starts))


@st.composite
def versions(draw: st.DrawFn) -> list[Matrix]:
    sources, sinks = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return draw(st.lists(matrices(sources, sinks), min_size=1, max_size=3))


def world(version: Sequence[Matrix]) -> tuple[Manifest, Topology]:
    specs = [TensorSpec(f"{number}", "F32", (each.rows, each.columns)) for number, each in enumerate(version)]
    sources, sinks = len(version[0].held) - 1, len(version[0].cuts)
    ends, placed = [0] * sources, []
    for spec, matrix in zip(specs, version, strict=True):
        for source, (low, high) in enumerate(pairwise(matrix.held)):
            if low < high:
                placed.append(PlacedTensor(spec, source, ends[source], (high - low) * ITEM, low * ITEM))
                ends[source] += -(-(high - low) * ITEM // 256) * 256
    extents = tuple(Extent(source, max(end, 256), MemoryKind.PRIVATE) for source, end in enumerate(ends))
    digest = digest_of(specs)
    shares = []
    for sink in range(sinks):
        slices, ranges = [], []
        for spec, matrix in zip(specs, version, strict=True):
            (first, last), size = matrix.cuts[sink], matrix.columns * ITEM
            ranges.append((spec.name, 0, spec.nbytes))
            if last - first < matrix.columns:
                slices.append((spec.name, StridedRange(first * ITEM, (last - first) * ITEM, matrix.rows, size)))
        shares.append(Share(digest, tuple(ranges), tuple(slices)))
    members = [RankInfo(rank, Role.SOURCE, f"s{rank}", PLENTY, ("read", "wire")) for rank in range(sources)]
    members += [
        RankInfo(sources + rank, Role.SINK, f"h{rank}", PLENTY, ("read", "wire"), share=rank) for rank in range(sinks)
    ]
    return Manifest("v", extents, tuple(placed)), Topology(tuple(members), tuple(shares))


def values(version: Sequence[Matrix]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(version))
    return [torch.randint(256, (each.nbytes,), dtype=torch.uint8, generator=generator) for each in version]


def filled(made: Plan, manifest: Manifest, whole: Sequence[torch.Tensor]) -> dict[int, Backing]:
    """What each source has, by the number of the extent."""
    extents: dict[int, Backing] = {}
    for number, extent in enumerate(manifest.extents):
        buffer = Buffer.private(extent.nbytes)
        for tensor in manifest.tensors:
            if tensor.extent == number:
                part = whole[int(tensor.spec.name)][tensor.start : tensor.start + tensor.nbytes]
                buffer.tensor[tensor.offset : tensor.offset + tensor.nbytes] = part
        extents[number] = buffer
    return extents | dict(column_extents(made.manifest, extents))


def carried_out(made: Plan, extents: dict[int, Backing], sink: int, sizes: Sequence[int]) -> list[torch.Tensor]:
    """What a sink has of each tensor when all buckets have come to it; zero elsewhere."""
    taken = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    for bucket in made.buckets:
        if sink not in made.receiver_sets[bucket.receiver_set]:
            continue
        slot = torch.empty(bucket.nbytes, dtype=torch.uint8)
        for part in bucket.ranges:
            extents[bucket.extent].fill(slot[part.bucket_offset : part.bucket_offset + part.nbytes], part.offset)
        for piece in bucket.pieces:
            for place in made.places(piece):
                for spec, start, at, nbytes, *_ in place.each():
                    taken[int(spec.name)][start : start + nbytes] = slot[at : at + nbytes]
    return taken


@settings(max_examples=30, deadline=None)
@given(versions(), st.sampled_from([256, 1024, 1 << 20]))
def test_given_matrices_that_sinks_cut_by_columns_then_each_gets_its_own(
    version: list[Matrix], bucket_bytes: int
) -> None:
    manifest, fleet = world(version)
    made = plan(manifest, fleet, INVENTED, Settings(transport="read", bucket_bytes=bucket_bytes, range_bytes=256))
    verify(made)
    whole = values(version)
    extents = filled(made, manifest, whole)
    for sink, number in enumerate(fleet.sinks):
        taken = carried_out(made, extents, number, [each.nbytes for each in version])
        for matrix, got, all_of_it in zip(version, taken, whole, strict=True):
            (first, last), shape = matrix.cuts[sink], (matrix.rows, matrix.columns * ITEM)
            columns = slice(first * ITEM, last * ITEM)
            assert torch.equal(got.view(shape)[:, columns], all_of_it.view(shape)[:, columns])


def halves(rows: int = 512, columns: int = 512) -> list[Matrix]:
    """Two matrices, of which two sources have half of the rows each, and two sinks take half of the columns."""
    cuts = ((0, columns // 2), (columns // 2, columns))
    return [Matrix(rows, columns, (0, rows * columns // 2, rows * columns), cuts) for _ in range(2)]


@pytest.mark.parametrize("transport", ["read", "wire"])
def test_given_halves_of_columns_then_no_byte_is_sent_that_a_sink_does_not_need(transport: str) -> None:
    manifest, fleet = world(halves())
    made = plan(manifest, fleet, INVENTED, Settings(transport=transport, bucket_bytes=64 << 10))
    verify(made)
    assert made.bytes_to == dict.fromkeys(fleet.sinks, manifest.nbytes // 2)
    sent: defaultdict[int, int] = defaultdict(int)
    for bucket in made.buckets:
        assert bucket.fill_slot != IN_PLACE
        sent[made.owner(bucket)] += bucket.payload * len(made.receiver_sets[bucket.receiver_set])
    assert sent == dict.fromkeys(fleet.sources, manifest.nbytes // 2)
    assert any(note.startswith("columns of 2 tensors are gathered at the sources") for note in made.notes)
    assert Plan.decode(made.encode()) == made


def test_given_a_sink_that_takes_everything_or_a_transport_that_maps_memory_then_tensors_stay_in_their_order() -> None:
    manifest, fleet = world(halves())
    hosts = [
        RankInfo(each.rank, each.role, "one", PLENTY, ("window",), share=each.share) for each in fleet.participants
    ]
    shared = Manifest(
        "v", tuple(Extent(e.owner, e.nbytes, MemoryKind.SHARED) for e in manifest.extents), manifest.tensors
    )
    mapped = plan(shared, Topology(tuple(hosts), fleet.shares), INVENTED, Settings(transport="window"))
    assert not mapped.manifest.ordered
    assert mapped.bytes_to == dict.fromkeys(fleet.sinks, manifest.nbytes // 2)
    more = RankInfo(len(fleet.participants), Role.SINK, "h9", PLENTY, ("read",))
    made = plan(manifest, Topology((*fleet.participants, more), fleet.shares), INVENTED, Settings(transport="read"))
    assert not made.manifest.ordered


def test_given_a_source_without_memory_to_gather_in_then_tensors_stay_in_their_order() -> None:
    manifest, fleet = world(halves())
    poor = [
        each if each.role is Role.SINK else RankInfo(each.rank, each.role, each.host, 0, each.transports)
        for each in fleet.participants
    ]
    made = plan(manifest, Topology(tuple(poor), fleet.shares), INVENTED, Settings(transport="read"))
    verify(made)
    assert not made.manifest.ordered


def test_given_a_network_that_is_faster_than_a_core_then_tensors_are_sent_from_where_they_lie() -> None:
    """Reading twice as much in place takes no longer than gathering half of it."""
    manifest, fleet = world(halves())
    swift = {"read": traits(sends_from=frozenset({MemoryKind.PRIVATE}), bandwidth=5e10, latency=1e-6)}
    made = plan(manifest, fleet, swift, Settings(transport="read"))
    assert not made.manifest.ordered
    assert all(bucket.fill_slot == IN_PLACE for bucket in made.buckets)
