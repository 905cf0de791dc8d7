"""Given bytes on the host that pass through two staging buffers on a GPU, then all are read as they were."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.memory import DoubleBuffer, MemoryRun, PartialCopy, StridedRange
from ckpt_transport.memory.double_buffer import LARGEST

GPU = torch.device("cuda", 0)
SIZES = [1 << 20, 3 << 20, 5, 2 << 20, 3 << 20, 1 << 10]
CYCLES = 20_000_000
"""About ten milliseconds."""


def test_given_a_slow_reader_then_it_finds_every_run_as_it_was() -> None:
    """Also when the host is far ahead: nothing here waits for the device before the end."""
    runs = [torch.full((size,), number, dtype=torch.uint8).pin_memory() for number, size in enumerate(SIZES * 5)]
    double_buffer = DoubleBuffer(GPU)
    copies = []
    for run in runs:
        ((_, near),) = double_buffer.stage([MemoryRun(0, run)])
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
        copies.append(near.clone())
    torch.cuda.synchronize()
    for run, copy in zip(runs, copies, strict=True):
        assert torch.equal(copy.cpu(), run)


def test_given_a_run_too_large_for_a_buffer_then_it_is_brought_between_others() -> None:
    runs = [torch.full((size,), size % 251, dtype=torch.uint8).pin_memory() for size in (1 << 20, LARGEST + 1, 3)]
    double_buffer = DoubleBuffer(GPU)
    for run in runs:
        ((_, near),) = double_buffer.stage([MemoryRun(0, run)])
        assert torch.equal(near.cpu(), run)


def test_given_two_buffers_then_two_powers_of_two_are_all_the_memory_taken_and_it_is_given_back() -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(GPU)
    double_buffer = DoubleBuffer(GPU)
    for size in SIZES * 3:
        double_buffer.stage([MemoryRun(0, torch.zeros(size, dtype=torch.uint8).pin_memory())])
    assert torch.cuda.memory_allocated(GPU) - before <= 2 * (4 << 20)
    double_buffer.close()
    assert torch.cuda.memory_allocated(GPU) == before


def test_given_a_bucket_in_several_runs_then_it_is_brought_as_one() -> None:
    runs = [
        MemoryRun(0, torch.full((100,), 1, dtype=torch.uint8)),
        MemoryRun(256, torch.full((77,), 2, dtype=torch.uint8)),
    ]
    ((at, near),) = DoubleBuffer(GPU).stage(runs)
    assert (at, near.numel()) == (0, 333)
    for start, raw in runs:
        assert torch.equal(near[start : start + raw.numel()].cpu(), raw)


def test_given_what_is_on_the_gpu_then_it_stays_where_it_is() -> None:
    there = [MemoryRun(0, torch.zeros(100, dtype=torch.uint8, device=GPU))]
    assert DoubleBuffer(GPU).stage(there) is there


@pytest.mark.parametrize("pinned", [True, False])
def test_given_a_part_of_a_bucket_then_that_is_brought_to_its_place_and_nothing_else(pinned: bool) -> None:
    """Given rows and columns in turns, and buffers that hold another bucket, then only the part is overwritten."""
    raw, before = torch.randint(0, 256, (2, 8 << 20), dtype=torch.uint8)
    parts = [
        StridedRange(0, 1 << 20),
        StridedRange(2 << 20, 3 << 8, 1000, 3 << 9),
        StridedRange(6 << 20, 1 << 19, 2, 3 << 18),
    ]
    expected = before.clone()
    for part in parts:
        for number in range(part.runs):
            run = slice(part.start + number * part.stride, part.start + number * part.stride + part.nbytes)
            expected[run] = raw[run]
    double_buffer, partial = DoubleBuffer(GPU), PartialCopy(GPU, parts)
    for _ in range(2):
        double_buffer.stage([MemoryRun(0, before)])
    for _ in range(4):
        ((_, near),) = double_buffer.stage([MemoryRun(0, raw.pin_memory() if pinned else raw)], lambda: partial)
        assert torch.equal(near.cpu(), expected)
