"""Given bytes on the host that pass through two staging buffers on a GPU, then all are read as they were."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.memory import DoubleBuffer, MemoryRun, PartialCopy, StridedRange
from ckpt_transport.memory.double_buffer import LARGEST
from ckpt_transport.planning import PlacedBytes
from ckpt_transport.replay import BucketCopyPlans, Replay, record
from tests.unit.recorded import buckets, specs_of

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


def test_given_a_recorded_loader_then_it_is_told_what_of_a_bucket_came_to_the_gpu() -> None:
    """So that what was brought is compared there, and not on the host once more."""
    tensors = {"cut": torch.randn(64, 512), "all": torch.randn(4096)}
    module = torch.nn.ParameterDict({"cut": torch.zeros(32, 512, device=GPU), "all": torch.zeros(4096, device=GPU)})

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            module[name].data.copy_(tensor[:32] if name == "cut" else tensor)

    specs = {spec.name: spec for spec in specs_of(tensors)}
    layout = record(module, load, list(specs.values())).layout
    plans = BucketCopyPlans(layout)
    replay = Replay(plans, {number: module[target.name].data for number, target in enumerate(layout.targets)})
    told: list[tuple[torch.Tensor, PartialCopy]] = []
    for number, (raw, pieces) in enumerate(buckets(tensors, 1 << 20)):
        places = [PlacedBytes(specs[name], offset, at, length) for name, offset, at, length in pieces]
        bucket = LoadedBucket(
            number,
            raw.pin_memory(),
            lambda places=places: places,  # type: ignore[misc]
            on_brought=lambda runs, part: told.append((runs[0].raw.cpu(), part)),  # type: ignore[arg-type]
        )
        replay.run(plans.of(bucket), bucket)
    ((near, part),) = told
    (raw, _), *_ = buckets(tensors, 1 << 20)
    read = 32 * 512 * 4
    assert part.covers([StridedRange(0, read)])
    assert not part.covers([StridedRange(0, read + 1)])
    assert torch.equal(near[:read], raw[:read])
    assert torch.equal(module["cut"].cpu(), tensors["cut"][:32])
