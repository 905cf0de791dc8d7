"""Measures copies of host memory in moves of 256 KiB against one NumPy call for as many bytes, in turns, on one thread.

Both are timed in the processor time of that thread, so that others on the machine count for less; the ratio is of the
fastest of each, as it is of what the processor can do. ``python -m benchmarks.host_moves``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from benchmarks._report import Row, report
from ckpt_transport.memory.moves import move

Bytes = npt.NDArray[np.uint8]
SIZES = (8 << 20, 64 << 20)
"""Of one copy: what threads take at a time, and a long bucket."""


def measure(mib: int = 512, repeats: int = 15) -> list[Row]:
    """A row for each size of a copy."""
    source = np.random.default_rng(1).integers(0, 256, mib << 20, dtype=np.uint8)
    target = np.ones_like(source)
    return [_row(target, source, size, repeats) for size in SIZES]


def _row(target: Bytes, source: Bytes, size: int, repeats: int) -> Row:
    ways: dict[str, Callable[[Bytes, Bytes], None]] = {"moves": move, "calls": np.copyto}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.thread_time()
            for start in range(0, source.size, size):
                way(target[start : start + size], source[start : start + size])
            taken[name].append(time.thread_time() - began)
    moves, calls = (min(taken[name]) for name in ways)
    return Row(
        name=f"copies of {size >> 20} MiB in moves, one thread",
        ratio=moves / calls,
        against="one NumPy call for each",
        target="<=1",
        detail=f"{source.size / moves / 1e9:.1f} GB/s against {source.size / calls / 1e9:.1f} GB/s",
    )


def main(
    mib: Annotated[int, typer.Option(help="Bytes that are copied, in MiB.")] = 512,
    repeats: Annotated[int, typer.Option(help="Repetitions.")] = 15,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Copy the same bytes in moves and in one call, in turns."""
    report(measure(mib, repeats), json)


if __name__ == "__main__":
    typer.run(main)
