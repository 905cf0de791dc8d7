"""The pages of new memory are brought in before anybody writes to it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
import torch

from ckpt_transport.errors import SharedMemoryError
from ckpt_transport.memory import Buffer, Segment, pages
from ckpt_transport.memory.libc import libc

NBYTES = 2 * pages.CHUNK_BYTES + 5 * mmap.PAGESIZE


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(NBYTES)
    yield made
    made.close()


def allocated(segment: Segment) -> int:
    """Bytes that the kernel has given the segment's file."""
    return segment.path.stat().st_blocks * 512


def test_given_new_shared_memory_then_all_of_its_pages_are_there_afterwards(
    segment: Segment, threads: Executor
) -> None:
    assert allocated(segment) == 0
    buffer = Buffer.of(segment)
    buffer.populate(threads)
    assert allocated(segment) == NBYTES
    assert not buffer.tensor.any()


def test_given_a_kernel_without_such_a_call_then_the_pages_are_reserved_and_touched(
    segment: Segment, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libc(), "madvise", lambda address, nbytes, advice: -1)
    Buffer.of(segment).populate(threads)
    assert allocated(segment) == NBYTES


def test_given_private_memory_at_an_odd_address_then_what_lies_around_it_stays(threads: Executor) -> None:
    memory = torch.full((NBYTES,), 7, dtype=torch.uint8)
    Buffer(memory[1001:-1001]).populate(threads)
    assert memory[:1001].eq(7).all()
    assert memory[-1001:].eq(7).all()


def test_given_memory_that_cannot_be_had_then_its_error_is_raised(
    segment: Segment, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(offset: int, nbytes: int) -> None:
        raise SharedMemoryError("/dev/shm is full")

    monkeypatch.setattr(libc(), "madvise", lambda address, nbytes, advice: -1)
    monkeypatch.setattr(segment, "reserve", full)
    with pytest.raises(SharedMemoryError, match="is full"):
        Buffer.of(segment).populate(threads)
