"""Measures on the host how fast a delta is found, located, committed and rolled back, against a copy of as many bytes.

Rates are of the bytes of the whole range, BF16, of which some elements have changed at random places. A sink serves it
as it comes, and has located what has changed when it could be exchanged. Each step is measured beside a copy of that
range, in turns, and the ratio is the median of rounds. All cores work, and the time is the processor's, so what else
runs on the machine counts for little.
Usage: ``python -m benchmarks.deltas``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks._report import Row, report
from ckpt_transport.deltas import ElementMap, HostExchange, encode, locate_on_host
from ckpt_transport.memory import ElementCopy, StridedBytes, copy_bytes
from ckpt_transport.planning import Carrier, PlacedTensor, TensorSpec

HOST = torch.device("cpu")
UNIT = 2
SHARES = (0.0, 0.01, 0.05, 0.08, 0.2)
TARGET = ">=0.4"
"""What a diff should reach of the rate of a copy."""


def measure(mib: int = 128, rounds: int = 5) -> list[Row]:
    """A row for each step of each delta."""
    return [row for share in SHARES for row in _measure(mib << 20, share, rounds)]


def _measure(nbytes: int, share: float, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    base = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    new, copied = base.clone(), torch.empty_like(base)
    units = new.view(torch.int16)
    changed = torch.randperm(len(units))[: round(share * len(units))]
    units[changed] ^= 1
    encoded = encode(base, new, UNIT)
    assert encoded.count == len(changed), "changes are wrong"
    steps: dict[str, Callable[[], object]] = {"diff": lambda: encode(base, new, UNIT)}
    if encoded.count:
        served = base.clone()
        carrier = Carrier("carrier", 0, 0, nbytes, UNIT, encoded.form, encoded.count)
        known, bases = _served_as_it_comes(len(units)), np.array([served.data_ptr()])

        def locate() -> HostExchange:
            return HostExchange(locate_on_host([carrier], {carrier.name: encoded.raw}, known, bases))

        exchange = locate()
        exchange.exchange()
        assert torch.equal(served, new), "bytes are wrong after the commit"
        exchange.exchange()
        assert torch.equal(served, base), "bytes are wrong after rolling back"
        steps["decode and locate"] = locate
        steps["commit, or roll back"] = exchange.exchange
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, work in steps.items():
            taken[name].append((_processor_seconds(lambda: copy_bytes(copied, base)), _processor_seconds(work)))
    return [_row(f"{name}, {share:.0%} changed", nbytes, pairs, encoded.raw.numel()) for name, pairs in taken.items()]


def _served_as_it_comes(units: int) -> ElementMap:
    spec = TensorSpec("served", "BF16", (units,))
    copies = StridedBytes.of([ElementCopy(0, 0, 0, 0, UNIT, (units,), (UNIT,), (UNIT,))])
    return ElementMap([PlacedTensor(spec, 0, 0, spec.nbytes)], [spec], copies, HOST)


def _processor_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _row(name: str, nbytes: int, pairs: list[tuple[float, float]], sent: int) -> Row:
    copying, working = (median(each) for each in zip(*pairs, strict=True))
    rates = f"{nbytes / working / 1e9:.2f} GB/s, copy {nbytes / copying / 1e9:.2f} GB/s"
    return Row(
        name=name,
        ratio=median(copy / work for copy, work in pairs),
        against="the rate of a copy",
        target=TARGET if name.startswith("diff") else "",
        detail=f"{rates}; {sent / nbytes:.1%} of the bytes are sent",
    )


def main(
    mib: Annotated[int, typer.Option(help="Size of the range.")] = 128,
    rounds: Annotated[int, typer.Option(help="Repetitions.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Find, locate, commit and roll back deltas of several densities."""
    report(measure(mib, rounds), json)


if __name__ == "__main__":
    typer.run(main)
