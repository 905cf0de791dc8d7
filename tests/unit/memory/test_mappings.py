"""Which memory must not be written is found by questions about it, and by reading all mappings, alike."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.memory import mappings
from ckpt_transport.memory.mappings import mapped_read_only

PAGE, PAGES = mmap.PAGESIZE, 16
Ranges = Sequence[tuple[int, int]]


class Pages:
    """Memory of :data:`PAGES` pages, of which some must not be written."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, PAGE * PAGES)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self._protect = ctypes.CDLL(None).mprotect

    def write_only(self, pages: set[int]) -> None:
        for page in range(PAGES):
            may = mmap.PROT_READ | (mmap.PROT_WRITE if page in pages else 0)
            assert self._protect(ctypes.c_void_p(self.start + page * PAGE), ctypes.c_size_t(PAGE), may) == 0

    def unwritable(self, ranges: Ranges) -> list[int]:
        begins, ends = (np.array([self.start + each[side] for each in ranges], np.uint64) for side in (0, 1))
        return mapped_read_only(begins, ends)


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    made = Pages()
    yield made
    made.write_only(set(range(PAGES)))


PLACE = st.integers(0, PAGE * PAGES)
RANGES = st.lists(st.tuples(PLACE, PLACE).map(lambda ends: (min(ends), max(ends))), max_size=12)


def expected(writable: set[int], ranges: Ranges) -> list[int]:
    return [
        number
        for number, (begin, end) in enumerate(ranges)
        if begin < end and not writable.issuperset(range(begin // PAGE, -(-end // PAGE)))
    ]


@checked(deadline=None)
@given(st.sets(st.integers(0, PAGES - 1)), RANGES, st.sampled_from([0, 2, mappings.MOST_ASKED]))
def test_given_any_pages_that_must_not_be_written_then_ranges_that_touch_one_are_found(
    pages: Pages, writable: set[int], ranges: Ranges, most_asked: int
) -> None:
    """Whether mappings are asked about, or are too many for that and are read."""
    pages.write_only(writable)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mappings, "MOST_ASKED", most_asked)
        assert pages.unwritable(ranges) == expected(writable, ranges)


def test_given_a_kernel_that_answers_no_questions_then_all_mappings_are_read(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "_PROCMAP_QUERY", mappings._PROCMAP_QUERY + 1)
    pages.write_only({0, 2})
    assert pages.unwritable([(0, PAGE), (0, PAGE + 1), (2 * PAGE, 3 * PAGE)]) == [1]


def test_given_no_memory_then_nothing_is_found(pages: Pages) -> None:
    assert pages.unwritable([]) == []
