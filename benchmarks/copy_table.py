"""Measures a copy table on a GPU against plain copies of as many bytes, which is what the memory or the link can do.

``python -m benchmarks.copy_table [--layers N]``; 24 layers are half of Qwen3-30B-A3B: 9,435 tensors, 31.2 GB on each
side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks._models import BF16_BYTES, mixture
from benchmarks._report import Row, report
from ckpt_transport.memory import Addresses, CopyTable, ElementCopy, StridedBytes

GPU = torch.device("cuda", 0)
ROW_BYTES = 1536
"""Of a down projection of Qwen3-30B-A3B; a rank of two needs half of each row."""
HOST_BYTES = 2 << 30
ROUNDS = 5
PLAIN = "a plain copy of as many bytes"


def into_parameters(layers: int) -> list[Row]:
    """One run of memory into all parameters of a mixture, as a bucket brings them."""
    sizes = [prod(shape) * BF16_BYTES for shape in mixture(layers).values()]
    source = torch.empty(sum(sizes), dtype=torch.uint8, device=GPU).random_()
    targets = [torch.zeros(size, dtype=torch.uint8, device=GPU) for size in sizes]
    starts = list(accumulate(sizes, initial=0))
    began = time.perf_counter()
    zero, numbers = np.zeros(len(sizes), np.int64), np.arange(len(sizes))
    table = CopyTable(
        GPU, StridedBytes.contiguous(zero, numbers, np.array(starts[:-1]), zero, np.array(sizes, np.int64))
    )
    read, written = _at(source), _at(*targets)
    table.copy(read, written)
    torch.cuda.synchronize()
    made = time.perf_counter() - began
    parts = zip(starts, targets, strict=False)
    assert all(torch.equal(source[start : start + len(target)], target) for start, target in parts), "bytes are wrong"
    copying, exchanging = _timed(lambda: table.copy(read, written)), _timed(lambda: table.exchange(read, written))
    del targets
    other = torch.empty_like(source)
    plain = _timed(lambda: other.copy_(source))
    moved = f"{exchanging * 1e3:.1f} ms, {2 * sum(sizes) / exchanging / 1e9:.1f} of {sum(sizes) / plain / 1e9:.1f} GB/s"
    return [
        _row(f"one run into {len(sizes)} parameters", copying, plain, sum(sizes), made),
        Row(f"exchanged with {len(sizes)} parameters", exchanging / plain, PLAIN, "", moved),
    ]


def halves_of_rows(source: torch.Tensor, where: str) -> Row:
    """Half of each row, as a rank of two reads its slice."""
    rows = source.view(-1, ROW_BYTES)[:, : ROW_BYTES // 2]
    target = torch.zeros(rows.shape, dtype=torch.uint8, device=GPU)
    copy = ElementCopy(0, 0, 0, 0, 1, tuple(rows.shape), rows.stride(), target.stride())
    table = CopyTable(GPU, StridedBytes.of([copy]))
    read, written = _at(source), _at(target)
    table.copy(read, written)
    assert torch.equal(target, rows.to(GPU)), "bytes are wrong"
    dense = source[: target.numel()]
    into = torch.empty_like(dense, device=GPU)
    plain = _timed(lambda: into.copy_(dense, non_blocking=True))
    return _row(
        f"half of each row of 1,536 B, {where}", _timed(lambda: table.copy(read, written)), plain, dense.numel()
    )


def _at(*tensors: torch.Tensor) -> Addresses:
    return Addresses(GPU, [tensor.data_ptr() for tensor in tensors])


def _row(what: str, copying: float, plain: float, nbytes: int, made: float = 0.0) -> Row:
    first = f"; made, compiled and run the first time in {made * 1e3:.0f} ms" if made else ""
    rates = f"{nbytes / copying / 1e9:.1f} of {nbytes / plain / 1e9:.1f} GB/s"
    return Row(what, copying / plain, PLAIN, "<=1.2", f"{copying * 1e3:.1f} ms, {rates}{first}")


def _timed(work: Callable[[], object]) -> float:
    """Seconds from a call to the end of what it enqueues."""
    found: list[float] = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return median(found)


def measure(layers: int) -> Sequence[Row]:
    """All rows."""
    rows = into_parameters(layers)
    nbytes = HOST_BYTES // ROW_BYTES * ROW_BYTES
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).random_()
    return [*rows, halves_of_rows(host.to(GPU), "the same GPU"), halves_of_rows(host, "page-locked host")]


def main(
    layers: Annotated[int, typer.Option(help="Of the mixture.")] = 24,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure copy tables on a GPU."""
    report(measure(layers), json)


if __name__ == "__main__":
    typer.run(main)
