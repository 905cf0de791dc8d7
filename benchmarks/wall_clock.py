"""Measures what the caller of an update waits for, and for how long requests are held, by the wall clock.

A trainer of 104 MiB updates a module in another process, by default over ``auto``. What its report says is held against
the wall clock around the call, ``auto`` against ``shm`` by name, and the time for which requests were held against a
plain ``copy_`` of the same bytes in the same process, in turns with the updates. Usage: ``python -m
benchmarks.wall_clock``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks._report import Row, report
from benchmarks._sinks import SinkProcess, ask_all, sinks, tensors
from ckpt_transport import Config, ParameterServer

PIECE_BYTES = 1 << 20
LEFT_OUT_SECONDS = 0.002
HELD_SECONDS = 0.15


class Timed(NamedTuple):
    """One update: by the wall clock, by its report, for how long it held requests; and a copy of the same bytes."""

    wall: float
    reported: float
    held: float
    copy: float


def measure(mib: int = 104, updates: int = 9) -> list[Row]:
    """Rows for the clock, for ``auto``, for the first update through a loader, and for lent tensors."""
    nbytes = mib << 20
    with sinks(1, nbytes, PIECE_BYTES) as (sink,):
        ask_all([sink], "fill source")
        auto = _updates(sink, nbytes, updates, "auto", lend=False)
        named = _updates(sink, nbytes, updates, "shm", lend=False)
        lent = _updates(sink, nbytes, updates, "shm", lend=True)
    with sinks(1, nbytes, PIECE_BYTES, by_loader=True) as (sink,):
        ask_all([sink], "fill source")
        first, *later = _updates(sink, nbytes, updates, "auto", lend=False)
    left_out = [each.wall - each.reported for each in (*auto, *named, *lent, first, *later)]
    size = f"{mib} MiB"
    return [
        Row(
            name="what a report leaves out of the wall time, median",
            ratio=median(left_out) / LEFT_OUT_SECONDS,
            against="2 ms",
            target="<=1",
            detail=f"median {_ms(median(left_out))}, most {_ms(max(left_out))}, of {len(left_out)} updates",
        ),
        Row(
            name=f"auto, {size}, wall time",
            ratio=_of(auto, "wall") / _of(named, "wall"),
            against="shm by name",
            target="<=1.1",
            detail=f"{_ms(_of(auto, 'wall'))}, {_ms(_of(named, 'wall'))}; first {_ms(auto[0].wall)}",
        ),
        Row(
            name=f"held by the first update through a loader, {size}",
            ratio=first.held / HELD_SECONDS,
            against="0.15 s",
            target="<=1",
            detail=f"{_ms(first.held)} of {_ms(first.wall)}; later {_ms(_of(later, 'held'))}; copy {_ms(first.copy)}",
        ),
        Row(
            name=f"held while lent tensors are sent, {size}",
            ratio=_of(lent, "held") / _of(named, "held"),
            against="registered ones",
            target="<=1.25",
            detail=f"{_ms(_of(lent, 'held'))}, {_ms(_of(named, 'held'))}; copy {_ms(_of(named, 'copy'))}",
        ),
    ]


def _updates(sink: SinkProcess, nbytes: int, count: int, transport: str, *, lend: bool) -> list[Timed]:
    found = []
    with ParameterServer(Config.load(transport=transport)) as server:
        for number in range(count):
            copy = ask_all([sink], "copy")
            weights: Mapping[str, torch.Tensor] = tensors(nbytes, float(number), PIECE_BYTES)
            if lend:
                server.lend("v", {name: tensor.contiguous() for name, tensor in weights.items()})
            else:
                server.register("v", tensors=weights)
            called = time.perf_counter()
            done = server.update("v", [sink.address])
            wall = time.perf_counter() - called
            assert done is not None
            found.append(Timed(wall, done.seconds, max(done.paused.values()), copy))
            server.unregister("v")
    sink.ask("values")
    _, values = sink.answer()
    assert values == {float(count - 1)}, values
    return found


def _of(updates: list[Timed], what: str) -> float:
    """The median of later updates."""
    return float(median(getattr(each, what) for each in updates[1:]))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def main(
    mib: Annotated[int, typer.Option(help="Size of the weights.")] = 104,
    updates: Annotated[int, typer.Option(help="Repetitions.")] = 9,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Hold reports against the wall clock, and held requests against a copy."""
    report(measure(mib, updates), json)


if __name__ == "__main__":
    typer.run(main)
