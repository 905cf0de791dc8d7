"""A digest that is computed in parts, by whoever reads the bytes, is that of the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from itertools import count
from typing import Any

import pytest
import torch

from ckpt_transport.memory import DividedDigest, copy_views_along, divided_digest
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.divided_digest import PART_BYTES
from ckpt_transport.memory.host_digest import sums_along
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


def fails_at(call: int) -> Callable[..., None]:
    """Takes the place of what adds up a part; there is no memory for the one of that call."""
    calls = count()

    def act(*given: Any) -> None:
        if next(calls) == call:
            raise MemoryError("no memory")
        sums_along(*given)

    return act


def test_given_a_part_that_cannot_be_computed_then_whoever_waits_hears_why_and_nothing_is_left_to_compute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    divided = DividedDigest(runs_of([4 * PART_BYTES]))
    monkeypatch.setattr(divided_digest, "sums_along", fails_at(1))
    divided.compute(PART_BYTES)
    with pytest.raises(MemoryError, match="no memory"):
        divided.compute()
    divided.compute()
    with pytest.raises(MemoryError, match="no memory"):
        divided.result.result(0)


def test_given_threads_of_which_each_fails_then_the_first_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    divided = DividedDigest(runs_of([2 * PART_BYTES]))
    begun = threading.Barrier(2, timeout=PATIENCE)
    heard: list[BaseException] = []

    def fail(*_: Any) -> None:
        begun.wait()
        raise MemoryError("no memory")

    def compute() -> None:
        try:
            divided.compute()
        except MemoryError as error:
            heard.append(error)

    monkeypatch.setattr(divided_digest, "sums_along", fail)
    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(heard) == 2
    assert divided.result.exception(0) in heard


def test_given_a_digest_that_is_not_wanted_any_more_then_nobody_computes_it_and_nobody_waits_for_it() -> None:
    divided = DividedDigest(runs_of([4 * PART_BYTES]))
    divided.compute(PART_BYTES)
    for _ in range(2):
        divided.cancel()
    divided.compute()
    with pytest.raises(CancelledError):
        divided.result.result(0)
    ended = DividedDigest(runs_of([1]))
    ended.compute()
    ended.cancel()
    assert ended.result.result(0)
