"""The digest of slices is that of their bytes, packed, whatever their strides are and wherever they lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.memory import StridedRange
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.digest_pages import PAGE_BYTES
from ckpt_transport.memory.packed_digest import PACKED_PAGES, packed_digest, packs
from tests.unit.worlds import strided_ranges

CHECKED = settings(deadline=None, max_examples=60)
NBYTES = 3 * PACKED_PAGES * PAGE_BYTES


def of(memory: torch.Tensor, *ranges: StridedRange) -> bytes:
    return as_bytes(packed_digest(ranges, lambda at, nbytes: memory[at : at + nbytes]))


def packed(memory: torch.Tensor, ranges: list[StridedRange]) -> torch.Tensor:
    return torch.cat([memory[indices(each)] for each in ranges])


def indices(each: StridedRange) -> torch.Tensor:
    runs = each.start + torch.arange(each.runs) * each.stride
    return (runs[:, None] + torch.arange(each.nbytes)).flatten()


def some(nbytes: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@CHECKED
@given(st.lists(strided_ranges(5000), min_size=1, max_size=5), st.integers(0, 7))
def test_given_short_runs_of_any_stride_at_any_address_then_they_are_digested_as_if_they_lay_together(
    ranges: list[StridedRange], shift: int
) -> None:
    memory = some(5000 + shift)[shift:]
    assert of(memory, *ranges) == as_bytes(digest([packed(memory, ranges)]))


@pytest.mark.parametrize(
    "part",
    [
        StridedRange(5, 3, NBYTES // 8, 7),
        StridedRange(0, 4099, NBYTES // 8000, 8000),
        StridedRange(1, PAGE_BYTES - 1, 20, PAGE_BYTES + 3),
        StridedRange(9, 1, NBYTES // 2 - 9, 2),
    ],
)
def test_given_more_than_is_packed_at_once_then_the_digest_goes_on_where_it_was(part: StridedRange) -> None:
    memory = some(NBYTES)
    assert of(memory, part) == as_bytes(digest([packed(memory, [part])]))


def test_given_runs_as_long_as_a_page_then_each_is_read_where_it_lies_between_those_that_are_packed() -> None:
    memory = some(NBYTES)
    ranges = [
        StridedRange(0, 10, 3, 20),
        StridedRange(100, 50),
        StridedRange(1000, PAGE_BYTES, 3, PAGE_BYTES + 24),
        StridedRange(NBYTES - 1000, 5, 10, 100),
    ]
    assert [len(pack) for pack in packs(ranges)] == [2, 1, 1, 1, 1]
    parts = [packed(memory, pack) for pack in packs(ranges)]
    assert of(memory, *ranges) == as_bytes(digest(parts))


@CHECKED
@given(strided_ranges(3000), st.data())
def test_given_a_byte_that_changes_then_the_digest_does_if_the_byte_is_read_and_only_then(
    part: StridedRange, data: st.DataObject
) -> None:
    memory = some(3000)
    before = of(memory, part)
    changed = data.draw(st.integers(0, 2999))
    memory[changed] ^= 1
    behind = changed - part.start
    is_read = 0 <= behind < part.end - part.start and behind % max(part.stride, part.nbytes) < part.nbytes
    assert (of(memory, part) != before) == is_read
