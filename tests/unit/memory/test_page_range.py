"""Memory that was put together of many allocations is seen by another process as one range."""

from __future__ import annotations

import ctypes

import pytest

from ckpt_transport.errors import PeerLostError, RegistrationError, TransferError
from ckpt_transport.memory.exported import GpuAllocation
from ckpt_transport.memory.open_files import AT_ONCE
from ckpt_transport.memory.page_range import MappedPages, PageRange, page_ranges
from tests.fleet import context
from tests.unit.memory.memfd_pages import NBYTES, START, MemfdPages, contents, owner

PAGE = 4096


def allocation(address: int, nbytes: int, number: int) -> GpuAllocation:
    return GpuAllocation(address, nbytes, number, in_pages=True)


def bytes_at(mapped: MappedPages, nbytes: int) -> bytes:
    return ctypes.string_at(mapped.address, nbytes)


def test_given_allocations_that_touch_then_they_are_one_range_and_a_gap_begins_another() -> None:
    found = [allocation(100, 20, 7), allocation(120, 2, 3), allocation(122, 20, 9), allocation(500, 2, 4)]
    assert list(page_ranges("server", found)) == [
        PageRange("server", 100, (20, 2, 20), (7, 3, 9)),
        PageRange("server", 500, (2,), (4,)),
    ]
    assert list(page_ranges("server", [])) == []


def test_given_a_range_then_each_allocation_is_asked_for_by_where_it_starts_and_its_number() -> None:
    pages = PageRange("server", 100, (20, 2, 20), (7, 3, 9))
    assert pages.keys == [(100, 7), (120, 3), (122, 9)]
    assert pages.nbytes == 42
    assert PageRange.decoded(pages.encoded) == pages


@pytest.mark.parametrize(
    "pages",
    [
        PageRange("server", 100, (), ()),
        PageRange("server", 100, (20,), (7, 3)),
        PageRange("server", 100, (20, 0), (7, 3)),
        PageRange("server", 100, (-20,), (7,)),
        PageRange("server", -1, (20,), (7,)),
        PageRange("server", 1 << 61, (1 << 61,), (7,)),
    ],
)
def test_given_a_range_that_there_cannot_be_then_it_is_refused(pages: PageRange) -> None:
    with pytest.raises(RegistrationError):
        PageRange.decoded(pages.encoded)


def check_seen(encoded: bytes) -> None:
    """In another process: map the range, and compare every byte."""
    pages, driver = PageRange.decoded(encoded), MemfdPages()
    mapped = MappedPages(pages, driver)
    assert bytes_at(mapped, pages.nbytes) == contents(pages.sizes)
    mapped.close()
    mapped.close()
    assert not driver.mapped
    assert not driver.reserved


def test_given_a_range_of_another_process_then_every_byte_is_seen_where_it_lies() -> None:
    with owner() as lender:
        pages = lender.grow(NBYTES, 3 * NBYTES, PAGE, *[PAGE] * (2 * AT_ONCE), NBYTES)
        reader = context.Process(target=check_seen, args=(pages.encoded,), daemon=True)
        reader.start()
        reader.join()
        assert reader.exitcode == 0


def test_given_a_segment_that_grows_while_it_is_mapped_then_both_mappings_see_the_same_memory() -> None:
    with owner() as lender:
        driver = MemfdPages()
        before = lender.grow(NBYTES, PAGE)
        first = MappedPages(before, driver)
        after = lender.grow(NBYTES)
        assert (after.address, after.keys[:2]) == (START, before.keys)
        second = MappedPages(after, MemfdPages())
        assert bytes_at(second, after.nbytes) == contents(after.sizes)
        first.close()
        assert bytes_at(second, after.nbytes) == contents(after.sizes)
        second.close()


def test_given_an_allocation_that_was_freed_then_nothing_stays_mapped_and_it_is_said() -> None:
    with owner() as lender:
        pages = lender.grow(*[PAGE] * (AT_ONCE + 4))
        lender.free(AT_ONCE + 2)
        driver = MemfdPages()
        with pytest.raises(TransferError, match=f"allocation {AT_ONCE + 2} was freed"):
            MappedPages(pages, driver)
        assert not driver.mapped
        assert not driver.reserved


def test_given_memory_that_is_mapped_then_its_owner_may_free_it_and_end() -> None:
    with owner() as lender:
        pages = lender.grow(NBYTES, NBYTES)
        mapped = MappedPages(pages, MemfdPages())
        lender.free(0)
    assert bytes_at(mapped, pages.nbytes) == contents(pages.sizes)
    mapped.close()
    with pytest.raises(PeerLostError):
        MappedPages(pages, MemfdPages())


def test_given_an_allocation_of_another_size_than_was_said_then_nothing_stays_mapped() -> None:
    with owner() as lender:
        pages = lender.grow(NBYTES, PAGE)
        driver = MemfdPages()
        with pytest.raises(RegistrationError, match="the file has 4096 bytes"):
            MappedPages(PageRange(pages.server, START, (NBYTES, 2 * PAGE), pages.numbers), driver)
        assert not driver.mapped
        assert not driver.reserved
