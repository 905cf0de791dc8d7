"""Measures on the host what it takes to divide a delta among two tensor-parallel ranks, against finding what differs.

Matrices of BF16, of which some elements have changed at random places. Each rank serves the upper or the lower half of
the rows of every second one, and the left or the right half of the columns of the others, as of what goes into an MLP
and what comes out of it. All cores work, and the time is the processor's, so what else runs on the machine counts for
little. Usage: ``python -m benchmarks.delta_shares``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, TypeVar

import torch
import typer

from benchmarks._report import Row, report
from ckpt_transport.deltas import CopiedBytes, Differences, ForShares, find_differences, ranges_of
from ckpt_transport.memory import Buffer, StridedRange
from ckpt_transport.planning import PlacedTensor, ServedShares, Share, TensorSpec, digest_of

ITEM, WIDTH, HEIGHT = 2, 4096, 2048
MATRIX_BYTES = ITEM * WIDTH * HEIGHT
BUCKET_BYTES = 64 << 20
DENSITIES = (0.01, 0.05, 0.2)
TARGET = "<=0.5"
Result = TypeVar("Result")


def matrices(nbytes: int) -> tuple[PlacedTensor, ...]:
    """A version of about so many bytes."""
    specs = [TensorSpec(f"m{number}", "BF16", (HEIGHT, WIDTH)) for number in range(max(nbytes // MATRIX_BYTES, 2))]
    return tuple(PlacedTensor(spec, 0, number * MATRIX_BYTES, MATRIX_BYTES) for number, spec in enumerate(specs))


def share_of(rank: int, tensors: tuple[PlacedTensor, ...]) -> Share:
    """What one of two ranks serves: half of the rows of one matrix, and half of the columns of the next."""
    ranges: list[tuple[str, int, int]] = []
    slices: list[tuple[str, StridedRange]] = []
    row = ITEM * WIDTH
    for number, tensor in enumerate(tensors):
        name = tensor.spec.name
        if number % 2:
            ranges.append((name, 0, MATRIX_BYTES))
            slices.append((name, StridedRange(rank * row // 2, row // 2, HEIGHT, row)))
        else:
            ranges.append((name, rank * MATRIX_BYTES // 2, MATRIX_BYTES // 2))
    return Share(digest_of(tensor.spec for tensor in tensors), tuple(ranges), tuple(slices))


def measure(mib: int = 256, rounds: int = 5) -> list[Row]:
    """A row for each density."""
    tensors = matrices(mib << 20)
    torch.manual_seed(0)
    base = torch.randint(0, 256, (MATRIX_BYTES * len(tensors),), dtype=torch.uint8)
    served = ServedShares.of([share_of(rank, tensors) for rank in range(2)])
    return [_measure(tensors, base, ForShares(tensors, served), density, rounds) for density in DENSITIES]


def _measure(
    tensors: tuple[PlacedTensor, ...], base: torch.Tensor, for_shares: ForShares, density: float, rounds: int
) -> Row:
    new = base.clone()
    units = new.view(torch.int16)
    units[torch.randperm(len(units))[: round(density * len(units))]] ^= 1
    ranges = ranges_of(tensors, BUCKET_BYTES)

    def find() -> Differences:
        found = find_differences(ranges, [Buffer(base)], [CopiedBytes(Buffer(new))], base.numel(), lambda: None)
        assert found is not None
        return found

    pairs: list[tuple[float, float]] = []
    for _ in range(rounds):
        finding, found = _processor_seconds(find)
        dividing, divided = _processor_seconds(lambda: for_shares.divide(found))  # noqa: B023
        pairs.append((finding, dividing))
    assert divided.changed == found.changed, "an element is lost, or is sent twice"
    finding, dividing = (median(each) for each in zip(*pairs, strict=True))
    return Row(
        name=f"divide, {density:.0%} changed",
        ratio=median(divide / find for find, divide in pairs),
        against="finding what differs",
        target=TARGET,
        detail=f"{base.numel() / dividing / 1e9:.2f} GB/s, found at {base.numel() / finding / 1e9:.2f} GB/s; "
        f"{len(divided.found)} carriers of {divided.nbytes / base.numel():.1%} of the bytes, undivided "
        f"{found.nbytes / base.numel():.1%}",
    )


def _processor_seconds(work: Callable[[], Result]) -> tuple[float, Result]:
    began = time.process_time()
    made = work()
    return time.process_time() - began, made


def main(
    mib: Annotated[int, typer.Option(help="Size of the version.")] = 256,
    rounds: Annotated[int, typer.Option(help="Repetitions.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Divide deltas of several densities."""
    report(measure(mib, rounds), json)


if __name__ == "__main__":
    typer.run(main)
