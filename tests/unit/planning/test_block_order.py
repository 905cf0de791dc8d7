"""A tensor that is numbered block by block has each byte once, and a plan in which it has not is refused."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.errors import CheckpointError, CoverageError, PlanError
from ckpt_transport.memory import MemoryKind, StridedRange
from ckpt_transport.planning import (
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    Settings,
    TensorRange,
    TensorSpec,
    plan,
    run_by_run,
    spread,
    verify,
    verify_part,
)
from ckpt_transport.planning.values.block_order import BlockOrder
from ckpt_transport.planning.verify.orders import meet
from tests.unit.memory.test_strided_range import bytes_of
from tests.unit.worlds import INVENTED, strided_ranges, topology

ROWS, ROW = 1 << 21, 64
WEIGHT = TensorSpec("w", "U8", (ROWS, ROW))
"""So many rows that nobody looks at each in the time that a test has."""
replace = msgspec.structs.replace


def columns(first: int, last: int, rows: int = ROWS, start: int = 0) -> StridedRange:
    return StridedRange(start * ROW + first, last - first, rows, ROW)


def shard(owner: int, *parts: StridedRange, replicated: bool = False) -> Manifest:
    """What a source has: these parts, one behind the other."""
    placed, end = [], 0
    for part in parts:
        placed.append(PlacedTensor(WEIGHT, 0, end, part.total, part.start, part.runs, part.stride))
        end += part.total
    extents = (Extent(owner, end, MemoryKind.PRIVATE),)
    return Manifest("v", extents, tuple(placed), replicated=("w",) if replicated else ())


def together(*shards: Manifest) -> Manifest:
    return spread("v", shards, dict.fromkeys(range(len(shards)), 1.0), (), whole=False)


def halves() -> Plan:
    manifest = together(shard(0, columns(0, 24)), shard(1, columns(24, 64)))
    return plan(manifest, topology(["a", "b"], "c"), INVENTED, Settings(transport="wire"))


@given(strided_ranges(60), strided_ranges(60))
def test_given_two_strided_ranges_then_they_meet_where_a_byte_is_in_both(
    one: StridedRange, other: StridedRange
) -> None:
    assert meet(one, other) == bool(set(bytes_of(one)).intersection(bytes_of(other)))
    assert meet(one, other) == meet(other, one)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.data())
def test_given_any_bytes_then_numbers_lead_to_them_and_back(rows: int, widths: list[int], data: st.DataObject) -> None:
    edges = [sum(widths[:count]) for count in range(len(widths) + 1)]
    total = rows * edges[-1]
    blocks = [StridedRange.of(low, high - low, rows, edges[-1]) for low, high in pairwise(edges)]
    order = BlockOrder("m", tuple(data.draw(st.permutations(blocks))))
    assert order.nbytes == total
    start = data.draw(st.integers(0, total - 1))
    wanted = StridedRange(start, data.draw(st.integers(1, total - start)))
    found: list[int] = []
    for number, part in order.numbers(wanted):
        there = [
            byte
            for run in range(number.runs)
            for place in order.places(number.start + run * number.stride, number.nbytes)
            for byte in bytes_of(place)
        ]
        assert there == bytes_of(part)
        found += there
    assert sorted(found) == bytes_of(wanted)
    assert sorted(byte for place in order.places(0, total) for byte in bytes_of(place)) == list(range(total))


def test_given_columns_of_two_million_rows_then_a_plan_has_a_block_for_each_source() -> None:
    made = halves()
    verify(made)
    for rank in range(3):
        verify_part(made, rank, 1 << 40)
    assert len(made.manifest.tensors) == 2
    assert made.manifest.ordered == (BlockOrder("w", (columns(0, 24), columns(24, 64))),)
    assert Plan.decode(made.encode()) == made


def test_given_columns_that_several_sources_have_then_they_share_them_out() -> None:
    rows = ROWS // 2
    own = [columns(0, 24, rows), columns(24, 64, rows), columns(0, 64, 1, rows)._replace(nbytes=rows * ROW)]
    made = together(*(shard(rank, *own, replicated=True) for rank in range(2)))
    sent = [sum(each.nbytes for each in made.tensors if made.extents[each.extent].owner == rank) for rank in range(2)]
    assert sum(sent) == WEIGHT.nbytes
    assert min(sent) > 0.9 * max(sent)


def test_given_columns_that_nobody_or_somebody_else_has_then_they_are_named() -> None:
    few = TensorSpec("w", "U8", (4, ROW))

    def of(owner: int, first: int, last: int) -> Manifest:
        placed = PlacedTensor(few, 0, 0, 4 * (last - first), first, 4, ROW)
        return Manifest("v", (Extent(owner, 4 * ROW, MemoryKind.PRIVATE),), (placed,))

    with pytest.raises(CheckpointError, match="no source rank holds bytes 24 to 32 of tensor w"):
        together(of(0, 0, 24), of(1, 32, 64))
    said = (
        "4 runs of 24 bytes, 64 apart, from byte 0 on of tensor 'w' are held twice, by source ranks (0 and 1|1 and 0)"
    )
    with pytest.raises(CheckpointError, match=said):
        together(of(0, 0, 24), of(1, 0, 24), of(2, 24, 64))
    with pytest.raises(CheckpointError, match="bytes 20 to 24 of tensor 'w' are held twice"):
        together(of(0, 0, 24), of(1, 20, 64))


@pytest.mark.parametrize(
    "placed",
    [
        PlacedTensor(WEIGHT, 0, 0, 25, 0, 2, 64),
        PlacedTensor(WEIGHT, 0, 0, 128, 0, 2, 32),
        PlacedTensor(WEIGHT, 0, 0, 2 * WEIGHT.nbytes, 0, 1 << 40, 64),
        PlacedTensor(WEIGHT, 0, 0, 0, 0, 2, 64),
    ],
    ids=["uneven", "over each other", "too many", "empty"],
)
def test_given_a_source_that_says_it_has_what_cannot_be_then_it_is_refused(placed: PlacedTensor) -> None:
    with pytest.raises(CheckpointError, match="a source says that it has"):
        together(Manifest("v", (Extent(0, 1 << 40, MemoryKind.PRIVATE),), (placed,)))


def test_given_bytes_that_a_tensor_does_not_have_then_their_runs_are_not_listed() -> None:
    with pytest.raises(CheckpointError, match="are said to be of tensor w"):
        list(run_by_run([PlacedTensor(WEIGHT, 0, 0, 1 << 50, 0, 1 << 40, 2048)]))


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ((columns(0, 24), columns(20, 60)), "are in two blocks"),
        ((columns(0, 24), columns(0, 40)), "are in two blocks"),
        ((columns(0, 24), columns(24, 63)), "have .* bytes, and it has"),
        ((columns(0, 24), columns(24, 64)._replace(start=25)), "lies outside of it"),
        ((columns(0, 24), StridedRange(0, 40 * ROWS)), "are in two blocks"),
    ],
    ids=["overlap", "again", "gap", "outside", "rows and columns"],
)
def test_given_blocks_that_are_no_order_of_a_tensor_then_the_plan_is_refused(
    blocks: tuple[StridedRange, ...], said: str
) -> None:
    made = halves()
    changed = replace(made, manifest=replace(made.manifest, ordered=(BlockOrder("w", blocks),)))
    with pytest.raises(CoverageError, match=said):
        verify(changed)
    with pytest.raises(CoverageError, match=said):
        verify_part(changed, 2, 1 << 40)


def test_given_an_order_that_does_not_fit_the_version_then_the_plan_is_refused() -> None:
    made = halves()
    manifest, order = made.manifest, made.manifest.ordered[0]
    first, *others = manifest.tensors
    for changed, said in (
        (replace(manifest, ordered=(order, order)), "numbered in two ways"),
        (replace(manifest, ordered=(BlockOrder("x", order.blocks),)), "x is numbered block by block, and is not there"),
        (replace(manifest, present=(TensorRange(WEIGHT, 0, 1),)), "are present"),
        (replace(manifest, tensors=(replace(first, runs=2, stride=64), *others)), "lies in 2 runs"),
    ):
        with pytest.raises(PlanError, match=said):
            verify(replace(made, manifest=changed))


@pytest.mark.parametrize("block", [(-1, 1, 1, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 2, 2, 2), (0, 2, 2, 1)], ids=str)
def test_given_an_order_of_what_are_no_blocks_then_it_is_no_order(block: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="are no block of 'w'"):
        BlockOrder("w", (StridedRange(*block),))
    with pytest.raises(msgspec.ValidationError, match="are no block of 'w'"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(["w", [block]]), type=BlockOrder)
