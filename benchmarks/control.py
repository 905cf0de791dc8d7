"""Measures what the control plane costs per bucket: an update of many small buckets, time per bucket beyond copying.

Everything a bucket needs besides its bytes is counted: planning, verifying, digests, READY, ACK, bookkeeping and
polling, on the source and on the sink. The version is small enough that copying takes next to nothing. The limit it is
held against is 300 microseconds. Usage: ``python -m benchmarks.control``.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks._report import Row, report
from benchmarks._sinks import sinks, tensors
from ckpt_transport import Config, ParameterServer

LIMIT = 300e-6
BUCKET_BYTES = 64 << 10
NBYTES = 128 << 20


def measure(updates: int = 7) -> list[Row]:
    """Seconds per bucket as a share of the limit: read in place, and through slots."""
    return [
        _measure("read in place", "shared", 1, updates),
        _measure("filled into a ring of 4 slots", "private", 4, updates),
    ]


def _measure(how: str, pool: str, ring_depth: int, updates: int) -> Row:
    settings = Config.load(transport="shm", pool=pool, bucket_bytes=BUCKET_BYTES, ring_depth=ring_depth)
    with sinks(1, NBYTES, BUCKET_BYTES) as running, ParameterServer(settings) as server:
        server.register("v", tensors=tensors(NBYTES, 1.0, BUCKET_BYTES))
        taken, buckets = [], 0
        for _ in range(updates + 1):
            done = server.update("v", [running[0].address])
            assert done is not None
            taken.append(done.seconds)
            buckets = len(done.plan.buckets)
    per_bucket = median(taken[1:]) / buckets
    return Row(
        name=f"an update's time per bucket, {buckets:,} buckets of {BUCKET_BYTES >> 10} KiB {how}",
        ratio=per_bucket / LIMIT,
        against="300 µs",
        target="<=1.0",
        detail=f"{per_bucket * 1e6:.0f} µs per bucket, its copies included",
    )


def main(json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None) -> None:
    """Measure the cost of control per bucket."""
    report(measure(), json)


if __name__ == "__main__":
    typer.run(main)
