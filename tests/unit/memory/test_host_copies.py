"""Copies of host memory are cut and gathered into batches that are the same copies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.memory import HostCopies, HostCopy, copy_batch
from ckpt_transport.memory.host_copies import BATCH_BYTES

SIZES = st.one_of(
    st.integers(0, 3), st.integers(0, 40 << 10), st.sampled_from([BATCH_BYTES - 1, BATCH_BYTES, 3 * BATCH_BYTES + 7])
)


@given(st.lists(SIZES, max_size=8))
def test_given_copies_of_any_sizes_then_batches_are_short_and_cover_every_byte_once(sizes: list[int]) -> None:
    copies = [HostCopy(number << 40, number << 50, size) for number, size in enumerate(sizes)]
    batches = list(HostCopies.of(copies).in_batches())
    assert all(len(batch) and batch.nbytes <= BATCH_BYTES for batch in batches)
    reached: dict[int, int] = {}
    for batch in batches:
        columns = (each.tolist() for each in (batch.targets, batch.sources, batch.sizes))
        for target, source, nbytes in zip(*columns, strict=True):
            number, start = divmod(target, 1 << 40)
            assert (source >> 50, source % (1 << 50)) == (number, start)
            assert start == reached.get(number, 0)
            reached[number] = start + nbytes
    assert reached == {number: size for number, size in enumerate(sizes) if size}


def test_given_batches_then_their_copies_are_made_and_nothing_else_is_written() -> None:
    sizes = [1, 0, 100, 16 << 10, (16 << 10) + 1, 1 << 20]
    source = torch.randint(0, 256, (sum(sizes),), dtype=torch.uint8)
    target = torch.full((sum(sizes) + len(sizes),), 7, dtype=torch.uint8)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    copies = [
        HostCopy(target.data_ptr() + start + number, source.data_ptr() + start, size)
        for number, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]
    assert sum(map(copy_batch, HostCopies.of(copies).in_batches())) == sum(sizes)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        assert torch.equal(target[start + number : start + number + size], source[start : start + size])
        assert target[start + number + size] == 7


@pytest.mark.parametrize("sizes", [[], [0], [1, 0, 3], [BATCH_BYTES], [5, 3 * BATCH_BYTES + 7, 0, 2], [1000] * 50])
def test_given_copies_as_columns_then_their_batches_are_bounded_and_bring_the_same_bytes(sizes: list[int]) -> None:
    most = 20
    copies = [HostCopy(number << 40, number << 41, size) for number, size in enumerate(sizes)]
    batches = list(HostCopies.of(copies).in_batches(most=most))
    assert all(0 < len(batch) <= most and batch.nbytes <= BATCH_BYTES for batch in batches)
    brought = [
        (int(target), int(source), int(size))
        for batch in batches
        for target, source, size in zip(batch.targets, batch.sources, batch.sizes, strict=True)
    ]
    for target, source, nbytes in filter(lambda copy: copy.nbytes, copies):
        done = 0
        while done < nbytes:
            at = brought.pop(0)
            assert at[:2] == (target + done, source + done)
            done += at[2]
        assert done == nbytes
    assert brought == []
