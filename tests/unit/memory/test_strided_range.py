"""Strided ranges name the bytes that a list of them would, in whatever way they are cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.memory import StridedRange, joined
from ckpt_transport.memory.byte_ranges import ranges_of, strided, union
from tests.unit.worlds import strided_ranges

NBYTES = 60


def bytes_of(*ranges: StridedRange) -> list[int]:
    """Every byte of some ranges, as often as it is there."""
    return sorted(
        each.start + run * each.stride + byte
        for each in ranges
        for run in range(each.runs)
        for byte in range(each.nbytes)
    )


@given(strided_ranges(NBYTES), st.integers(-5, NBYTES + 5), st.integers(-5, NBYTES + 5))
def test_given_bounds_then_the_parts_of_a_range_are_the_bytes_between_them(
    whole: StridedRange, low: int, high: int
) -> None:
    parts = list(whole.clip(low, high))
    assert bytes_of(*parts) == [byte for byte in bytes_of(whole) if low <= byte < high]
    assert len(parts) <= 3
    assert parts == sorted(parts)
    assert sum(part.total for part in parts) == len(bytes_of(*parts))


@given(strided_ranges(NBYTES), st.integers(0, NBYTES), st.integers(0, NBYTES))
def test_given_numbers_of_bytes_then_they_lead_to_these_bytes(whole: StridedRange, first: int, end: int) -> None:
    end = min(end, whole.total)
    parts = list(whole.numbered(first, end))
    assert [byte for part in parts for byte in bytes_of(part)] == bytes_of(whole)[first:end]
    assert len(parts) <= 3


@given(strided_ranges(NBYTES), strided_ranges(NBYTES))
def test_given_two_ranges_then_what_both_have_is_found_once_with_its_numbers(
    one: StridedRange, other: StridedRange
) -> None:
    found, listed = [], bytes_of(one)
    for part, number in one.common(other):
        assert [listed[each] for each in bytes_of(number)] == bytes_of(part)
        found += bytes_of(part)
    assert sorted(found) == sorted(set(listed).intersection(bytes_of(other)))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=9), st.integers(0, 3))
def test_given_ranges_one_behind_the_other_then_they_become_one_and_no_byte_is_lost(
    lengths: list[int], gap: int
) -> None:
    ranges, start = [], 0
    for number, nbytes in enumerate(length + 1 for length in lengths):
        start += gap if number % 2 else 0
        ranges.append(StridedRange(start, nbytes))
        start += nbytes
    found = joined(reversed(ranges))
    assert bytes_of(*found) == bytes_of(*ranges)
    assert gap or len(found) == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(1, 4), max_size=3), st.integers(1, 3)),
        min_size=1,
        max_size=4,
    ),
    st.randoms(use_true_random=False),
)
def test_given_slices_of_any_strides_and_sizes_then_each_byte_that_is_read_is_named_once(
    slices: list[tuple[int, list[int], int]], chance: object
) -> None:
    """Given views of one, two or three dimensions that may lie over each other, then their union has no byte twice."""
    parts = []
    for offset, shape, itemsize in slices:
        strides: list[int] = []
        distance = itemsize
        for count in reversed(shape):
            distance += chance.randrange(3) * itemsize  # type: ignore[attr-defined]
            strides.insert(0, distance)
            distance *= count
        parts.append(ranges_of(offset, shape, strides, itemsize))
    found = strided(*union(parts), most=1 << 20)
    expected: npt.NDArray[np.int64] = np.unique(
        np.concatenate([(part.starts[:, None] + np.arange(part.nbytes)).reshape(-1) for part in parts])
    )
    assert bytes_of(*found) == expected.tolist()
    assert all(one.end <= other.start for one, other in pairwise(found))
