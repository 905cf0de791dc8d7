"""What is copied out of packed rows of columns is what each row gives by itself."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.replay.strided_copy import PackedRows, StridedCopy, clip, out_of_rows

SIZE = 2
Range = tuple[int, int]


def ranges(size: int) -> st.SearchStrategy[Range]:
    return st.integers(0, size - 1).flatmap(lambda low: st.tuples(st.just(low), st.integers(low + 1, size)))


def moves(copies: Iterable[StridedCopy]) -> set[tuple[int, int]]:
    """Each element that is copied: from which byte, and to which."""
    return {
        (
            copy.read + sum(i * stride for i, stride in zip(index, copy.read_strides, strict=True)),
            copy.write + sum(i * stride for i, stride in zip(index, copy.write_strides, strict=True)),
        )
        for copy in copies
        for index in product(*map(range, copy.shape))
    }


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_given_a_copy_of_a_box_then_packed_rows_give_what_each_gives(
    data: st.DataObject, transposed: bool, every_other: bool
) -> None:
    height, width = data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6))
    (top, bottom), (left, right) = data.draw(ranges(height)), data.draw(ranges(width))
    (first, last), (low, high) = data.draw(ranges(height)), data.draw(ranges(width))
    step = 2 if every_other else 1
    rows, columns = len(range(top, bottom, step)), right - left
    writes = (SIZE, rows * SIZE) if transposed else (columns * SIZE, SIZE)
    read = (top * width + left) * SIZE
    copy = StridedCopy(0, (rows, columns), read, 64, (step * width * SIZE, SIZE), writes, "BF16", "BF16")
    packed = PackedRows((first * width + low) * SIZE, 512, (high - low) * SIZE, last - first, width * SIZE)
    expected: set[tuple[int, int]] = set()
    for run in range(packed.runs):
        start = packed.start + run * packed.stride
        by = packed.at + run * packed.nbytes - start
        expected |= moves(clip(copy._replace(read=copy.read + by), start + by, start + by + packed.nbytes))
    found = out_of_rows(copy, packed)
    inside = (low <= left and right <= high) or right <= low or high <= left
    assert found is not None or not inside
    assert found is None or (len(found) <= 1 and moves(found) == expected)
