"""A sink that maps a bucket reads of it what it needs, and the proof finds whatever it would miss or read twice."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.errors import CoverageError
from ckpt_transport.memory import MemoryKind, StridedRange
from ckpt_transport.planning import (
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    Settings,
    Share,
    TensorSpec,
    Topology,
    digest_of,
    explain,
    verify,
    verify_part,
)
from ckpt_transport.planning.values.reads import Reads, in_runs
from tests.unit.worlds import INVENTED, World, alternating, manifests, strided_ranges, topology, worlds

replace = msgspec.structs.replace
ROWS, COLUMNS = 8, 64
NBYTES = ROWS * COLUMNS
LAYERS = 3


def version() -> Manifest:
    """Of each layer a matrix that is cut by rows, one that is cut by columns, and a vector that all take."""
    tensors: list[PlacedTensor] = []
    offset = 0
    for layer in range(LAYERS):
        for name, shape in [("up", (ROWS, COLUMNS)), ("down", (ROWS, COLUMNS)), ("norm", (COLUMNS,))]:
            spec = TensorSpec(f"{layer}.{name}", "U8", shape)
            tensors.append(PlacedTensor(spec, 0, offset, spec.nbytes))
            offset += spec.nbytes
    return Manifest("step-2", (Extent(0, offset, MemoryKind.SHARED),), tuple(tensors))


def share_of(rank: int, size: int = 2) -> Share:
    """What rank ``rank`` of ``size`` needs."""
    rows, columns = NBYTES // size, COLUMNS // size
    ranges, slices = [], []
    for layer in range(LAYERS):
        ranges += [(f"{layer}.up", rank * rows, rows), (f"{layer}.down", 0, NBYTES), (f"{layer}.norm", 0, COLUMNS)]
        slices.append((f"{layer}.down", StridedRange(rank * columns, columns, ROWS, COLUMNS)))
    return Share(digest_of(version().specs.values()), tuple(sorted(ranges)), tuple(slices))


def planned(transport: str = "window", hosts: str = "aa", *, size: int = 2, bucket_bytes: int = 256) -> Plan:
    """A plan for one engine of ``size`` ranks after the other."""
    fleet = topology(["a"], hosts)
    shares = tuple(share_of(rank, size) for rank in range(size))
    members = (replace(each, share=(each.rank - 1) % size if each.rank else -1) for each in fleet.participants)
    settings = Settings(transport=transport, bucket_bytes=bucket_bytes, range_bytes=256)
    return World(version(), Topology(tuple(members), shares), INVENTED, settings).plan()


NEEDED = LAYERS * (NBYTES // 2 + NBYTES // 2 + COLUMNS)


def test_given_ranks_that_cut_rows_and_columns_then_each_reads_half_where_it_lies_and_is_shown_everything() -> None:
    made = planned()
    verify(made)
    assert not made.moves_shares
    assert made.bytes_to == {1: NEEDED, 2: NEEDED}
    assert (
        "each sink reads what it needs of the memory that it maps, 1.688 KiB to 1.688 KiB of 3.188 KiB (52.9% to 52.9%)"
        in explain(made)
    )


def test_given_ranks_on_another_host_then_those_that_map_a_relay_read_their_share_and_it_gets_everything() -> None:
    made = planned("wire+window", "bb")
    verify(made)
    assert not made.moves_shares
    assert made.bytes_to == {1: made.manifest.nbytes, 2: NEEDED}


@pytest.mark.parametrize("rank", [1, 2])
def test_given_what_is_read_then_it_is_each_byte_of_the_share_and_no_other(rank: int) -> None:
    made = planned(bucket_bytes=300)
    memory = bytearray(made.manifest.extents[0].nbytes)
    for number, bucket in enumerate(made.buckets):
        reads = made.reads.of(rank, number)
        for each in made.reads.of_share(rank - 1).get(number, ()) if reads is None else reads:
            for run in range(each.runs):
                for byte in range(each.nbytes):
                    memory[bucket.offset + each.start + run * each.stride + byte] += 1
    wanted = bytearray(len(memory))
    places = {tensor.spec.name: tensor.offset for tensor in made.manifest.tensors}
    for name, part in share_of(rank - 1).reads():
        for run in range(part.runs):
            start = places[name] + part.start + run * part.stride
            wanted[start : start + part.nbytes] = b"\x01" * part.nbytes
    assert memory == wanted


def test_given_a_sink_that_needs_all_of_a_bucket_then_all_of_it_is_read_with_what_lies_between() -> None:
    made = planned(bucket_bytes=256)
    whole = [number for number in range(len(made.buckets)) if made.reads.of(1, number) is None]
    names = {made.manifest.tensors[piece.tensor].spec.name for n in whole for piece in made.buckets[n].pieces}
    assert not any("down" in name for name in names)


@checked(max_examples=150, deadline=None)
@given(worlds())
def test_given_any_world_then_what_sinks_read_is_proved_and_counted(world: World) -> None:
    made = world.plan()
    verify(made)
    total = sum(bucket.payload for bucket in made.buckets)
    for rank in made.topology.sinks:
        share = made.topology.share_of(rank)
        verify_part(made, rank, made.topology.participants[rank].budget)
        mapped = all(
            rank in made.mapping[number]
            for number, bucket in enumerate(made.buckets)
            if rank in made.receiver_sets[bucket.receiver_set]
        )
        if share is not None and mapped:
            assert made.bytes_to[rank] == share.nbytes
        assert made.bytes_to[rank] <= total


# -- the proof ---------------------------------------------------------------------------------------------------------


def with_reads(made: Plan, number: int, reads: Reads) -> Plan:
    """The plan, with sinks of the first share taken to read something else of one bucket."""
    changed = replace(made)
    changed.reads._of_shares[0] = {**made.reads.of_share(0), number: reads}
    return changed


@st.composite
def mapped(draw: st.DrawFn) -> World:
    """A source, and a sink beside it that reads a slice of every tensor in place."""
    drawn = draw(manifests(1))
    ranges = tuple((tensor.spec.name, 0, tensor.nbytes) for tensor in drawn.tensors)
    slices = tuple((t.spec.name, draw(strided_ranges(t.nbytes))) for t in drawn.tensors if t.nbytes)
    assume(slices)
    fleet = topology(["a"], "a")
    members = (fleet.participants[0], replace(fleet.participants[1], share=0))
    share = Share(digest_of(drawn.specs.values()), tuple(sorted(ranges)), slices)
    known = {"screen": INVENTED["screen"], "window": INVENTED["window"], "post": INVENTED["post"]}
    settings = Settings(transport=draw(st.sampled_from(["window", "screen"])), bucket_bytes=256, range_bytes=1)
    shared = tuple(replace(extent, kind=MemoryKind.SHARED) for extent in drawn.extents)
    return World(replace(drawn, extents=shared), Topology(members, (share,)), known, settings)


@checked(max_examples=100, deadline=None)
@given(mapped(), st.data())
def test_given_any_read_that_is_missing_doubled_or_elsewhere_then_the_proof_fails(
    world: World, data: st.DataObject
) -> None:
    made = world.plan()
    verify(made)
    read = [(number, each) for number, reads in made.reads.of_share(0).items() for each in reads]
    number, one = data.draw(st.sampled_from(read))
    others = [each for each in made.reads.of_share(0)[number] if each is not one]
    longer = one._replace(nbytes=one.nbytes + 1)
    changed = data.draw(st.sampled_from([[], [one, one], [one.shifted(1)], [one.shifted(-1)], [longer]]))
    with pytest.raises(CoverageError):
        verify(with_reads(made, number, tuple(sorted([*others, *changed]))))


@pytest.mark.parametrize(
    "slices",
    [
        [StridedRange(0, 8, 4, 16), StridedRange(4, 8, 4, 16)],
        [StridedRange(0, 8, 4, 16), StridedRange(8, 8, 4, 24)],
        [StridedRange(0, 4, 4, 16), StridedRange(4, 4, 4, 16), StridedRange(16, 4, 2, 16)],
        [StridedRange(0, 8, 4, 4)],
        [StridedRange(0, 0, 4, 16)],
        [StridedRange(-8, 8)],
    ],
)
def test_given_a_share_that_names_a_byte_twice_or_none_then_the_proof_fails(slices: Sequence[StridedRange]) -> None:
    made = planned()
    first = replace(made.topology.shares[0], slices=tuple(("0.down", each) for each in slices))
    shares = (first, made.topology.shares[1])
    with pytest.raises(CoverageError, match=r"0\.down"):
        verify(replace(made, topology=replace(made.topology, shares=shares)))


def test_given_columns_that_lie_in_turns_then_that_is_no_byte_twice() -> None:
    made = planned()
    combs = StridedRange(0, 8, 4, 64), StridedRange(16, 8, 4, 64), StridedRange(40, 8)
    first = replace(made.topology.shares[0], slices=tuple(("0.down", each) for each in combs))
    verify(replace(made, topology=replace(made.topology, shares=(first, made.topology.shares[1]))))


def test_given_a_gathered_bucket_then_no_run_goes_on_from_one_of_its_ranges_to_the_next() -> None:
    made = alternating("wire+window", "aabb").plan()
    bucket = next(bucket for bucket in made.buckets if len(bucket.gathered) > 1)
    pieces = tuple(StridedRange(piece.bucket_offset, piece.nbytes) for piece in bucket.pieces)
    found = in_runs(bucket, pieces)
    starts = {part.bucket_offset for part in bucket.gathered}
    assert {each.start for each in found} >= starts
    assert sum(each.total for each in found) == bucket.payload
