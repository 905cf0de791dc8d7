"""Measures an update over shared memory against a plain ``copy_`` of the same bytes.

The physical limit of an update in place is one copy of every byte from the source's memory into the parameters. The
limit is measured in the sinks themselves, into the same parameters, in turns with the updates.
Usage: ``python -m benchmarks.update_shm``.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks._report import Row, report
from benchmarks._sinks import ask_all, sinks, tensors
from ckpt_transport import Config, ParameterServer


def measure(gib: float = 4.0, updates: int = 7) -> list[Row]:
    """One row for one sink, one for two."""
    return [_measure(count, int(gib * (1 << 30)), updates) for count in (1, 2)]


def _measure(count: int, nbytes: int, updates: int) -> Row:
    with sinks(count, nbytes) as running:
        addresses = [sink.address for sink in running]
        ask_all(running, "fill source")
        copies, taken, phases = [], [], []
        with ParameterServer(Config(transport="shm")) as server:
            for number in range(updates + 1):
                copies.append(ask_all(running, "copy"))
                server.register(f"v{number}", tensors=tensors(nbytes, float(number)))
                done = server.update(f"v{number}", addresses)
                assert done is not None
                taken.append(done.seconds)
                phases.append(done.phases["run"])
                server.unregister(f"v{number}")
        for sink in running:
            sink.ask("values")
            version, values = sink.answer()
            assert (version, values) == (f"v{updates}", {float(updates)}), (version, values)
    ratio = median(taken[1:]) / median(copies[1:])
    what = f"{count} sink{'s' if count > 1 else ''}, {nbytes / (1 << 30):g} GiB"
    against = "a plain copy_" if count == 1 else f"{count} plain copy_ at the same time"
    detail = (
        f"update {median(taken[1:]) * 1e3:.0f} ms "
        f"(run {median(phases[1:]) * 1e3:.0f} ms, first {taken[0] * 1e3:.0f} ms), "
        f"copy {median(copies[1:]) * 1e3:.0f} ms = {nbytes / median(copies[1:]) / 1e9:.1f} GB/s"
    )
    return Row(name=f"shm update, {what}", ratio=ratio, against=against, target="<=1.25", detail=detail)


def main(
    gib: Annotated[float, typer.Option(help="Size of the weights.")] = 4.0,
    updates: Annotated[int, typer.Option(help="Repetitions.")] = 7,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Update one sink, then two, over shared memory."""
    report(measure(gib, updates), json)


if __name__ == "__main__":
    typer.run(main)
