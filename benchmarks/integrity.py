"""Measures what comparing digests costs: updates with ``integrity`` always against never, and the bare digest.

Updates run from ``update()`` to committed, to two sinks on this host, in turns. The version is registered anew before
each, as a trainer does, so no digest is known from before. The digest is measured on one thread, in the processor time
of that thread, beside a copy of the same bytes; on a GPU, where there is one, by events.
Usage: ``python -m benchmarks.integrity``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from benchmarks._report import Row, report
from benchmarks._sinks import sinks, tensors
from ckpt_transport import Config, ParameterServer
from ckpt_transport.memory.digest import digest

BUCKET_BYTES = 64 << 20
REPEATS = 15


def measure(gib: float = 2.0, updates: int = 7, transports: tuple[str, ...] = ("shm", "gloo")) -> list[Row]:
    """A row for each transport, one for the digest on the host, and one on a GPU where there is one."""
    rows = [_updates(transport, int(gib * (1 << 30)), updates) for transport in transports]
    rows.append(_on_host())
    return [*rows, _on_gpu()] if torch.cuda.is_available() else rows


def _updates(transport: str, nbytes: int, updates: int) -> Row:
    taken: dict[str, list[float]] = {"always": [], "never": []}
    with sinks(2, nbytes) as running:
        addresses = [sink.address for sink in running]
        for number in range(updates + 1):
            for integrity, seconds in taken.items():
                seconds.append(_update(transport, integrity, nbytes, float(number), addresses))
    always, never = (median(seconds[1:]) for seconds in taken.values())
    return Row(
        name=f"{transport}, 2 sinks, {nbytes / (1 << 30):g} GiB: always",
        ratio=always / never,
        against="never",
        target="",
        detail=f"{always * 1e3:.0f} ms against {never * 1e3:.0f} ms",
    )


def _update(transport: str, integrity: str, nbytes: int, fill: float, addresses: list[str]) -> float:
    with ParameterServer(Config.load(transport=transport, integrity=integrity)) as server:
        server.register("v", tensors=tensors(nbytes, fill))
        done = server.update("v", addresses)
        assert done is not None
        return done.seconds


def _on_host() -> Row:
    raw = torch.randint(0, 256, (BUCKET_BYTES,), dtype=torch.uint8)
    other = torch.empty_like(raw)
    target, source = other.numpy(), raw.numpy()

    def copy() -> None:
        target[:] = source

    digested, copied = _rate(lambda: digest([raw])), _rate(copy)
    return Row(
        name="digest of a bucket of 64 MiB, one thread",
        ratio=digested / copied,
        against="the rate of a copy",
        target="",
        detail=f"{digested:.1f} GB/s, copy {copied:.1f} GB/s",
    )


def _rate(work: Callable[[], object]) -> float:
    """Gigabytes of a bucket per second of this thread's processor time."""
    taken = []
    for _ in range(REPEATS):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return BUCKET_BYTES / median(taken) / 1e9


def _on_gpu() -> Row:
    raw = torch.randint(0, 256, (BUCKET_BYTES,), dtype=torch.uint8, device="cuda")
    other = torch.empty_like(raw)
    digested, copied = _rate_on_gpu(lambda: digest([raw])), _rate_on_gpu(lambda: other.copy_(raw))
    return Row(
        name=f"digest of a bucket of 64 MiB, {torch.cuda.get_device_name()}",
        ratio=digested / copied,
        against="the rate of a copy",
        target="",
        detail=f"{digested:.0f} GB/s, copy {copied:.0f} GB/s, 16 at a time",
    )


def _rate_on_gpu(work: Callable[[], object]) -> float:
    taken: list[float] = []
    for _ in range(REPEATS + 1):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begun.record()
        for _ in range(16):
            work()
        ended.record()
        ended.synchronize()
        taken.append(begun.elapsed_time(ended) / 1e3)
    return 16 * BUCKET_BYTES / median(taken[1:]) / 1e9


def main(
    gib: Annotated[float, typer.Option(help="Size of the weights.")] = 2.0,
    updates: Annotated[int, typer.Option(help="Repetitions.")] = 7,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Update two sinks with and without digests, and compute the digest alone."""
    report(measure(gib, updates), json)


if __name__ == "__main__":
    typer.run(main)
