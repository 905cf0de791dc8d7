"""A digest that is computed in parts, by whoever reads the bytes, is that of the whole."""

from __future__ import annotations

import threading

import pytest
import torch

from ckpt_transport.memory import DividedDigest, copy_views_along
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.divided_digest import PART_BYTES
from tests.patience import PATIENCE

SIZES = ([1], [PART_BYTES], [PART_BYTES + 1, 5, 3 * PART_BYTES - 7], [100, 200, PART_BYTES // 2])


def runs_of(sizes: list[int]) -> list[tuple[int, torch.Tensor]]:
    """Random bytes of these lengths, at odd addresses and with gaps between them."""
    torch.manual_seed(len(sizes))
    memory = torch.randint(0, 256, (sum(sizes) + 10 * len(sizes),), dtype=torch.uint8)
    found, at = [], 3
    for nbytes in sizes:
        found.append((at, memory[at : at + nbytes]))
        at += nbytes + 9
    return found


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_given_several_threads_that_compute_then_it_is_what_one_says_of_all(sizes: list[int]) -> None:
    runs = runs_of(sizes)
    divided = DividedDigest(runs)
    threads = [threading.Thread(target=divided.compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert divided.result.result(0) == as_bytes(digest([run for _, run in runs]))


def test_given_a_thread_that_reads_so_far_then_no_part_behind_that_is_computed_for_it() -> None:
    runs = runs_of([4 * PART_BYTES])
    divided = DividedDigest(runs)
    for end in range(1, 4):
        divided.compute(end * PART_BYTES)
        assert not divided.result.done()
    runs[0][1][-1] += 1
    divided.compute()
    assert divided.result.result(0) == as_bytes(digest([run for _, run in runs]))


def test_given_views_that_are_copied_then_what_is_read_is_computed_before_and_all_is_copied() -> None:
    memory = torch.randint(0, 256, (10 * PART_BYTES,), dtype=torch.uint8)
    divided = DividedDigest([(0, memory)])
    sources = [memory[: 6 * PART_BYTES], memory[6 * PART_BYTES :].view(torch.int64).view(1024, -1)[:, ::2]]
    targets = [torch.zeros_like(source) for source in sources]
    told: list[int] = []

    def along(until: int) -> None:
        told.append(until)
        divided.compute(until)

    copy_views_along(targets, sources, [0, 6 * PART_BYTES], along)
    assert all(torch.equal(*pair) for pair in zip(targets, sources, strict=True))
    assert max(told) > 9 * PART_BYTES
    divided.compute()
    assert divided.result.result(0) == as_bytes(digest([memory]))
