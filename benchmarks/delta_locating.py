"""Measures how long a GPU takes to decode elements of a delta and to locate them, against a copy of as many bytes.

Carriers are of 64 MiB each, of half of Qwen3-30B-A3B (31.2 GB) in BF16. Nothing is served: only addresses are found.
Usage: ``python -m benchmarks.delta_locating``; ``--kernels`` lists each kernel as well. Small, on a CPU:
``TRITON_INTERPRET=1 python -m benchmarks.delta_locating --small``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from benchmarks._models import mixture, narrowed
from benchmarks._report import Row, report
from ckpt_transport.deltas import ElementMap, Elements, encode, locate_on_device, of_one_range
from ckpt_transport.memory import ElementCopy, StridedBytes
from ckpt_transport.planning import Carrier, PlacedTensor, TensorSpec

LAYERS = 24
RANGE_BYTES = 64 << 20
ALIGNMENT = 256
UNIT = 2
SHARES = (0.01, 0.05, 0.1)
"""The last one is carried as a mask."""
SMALLER = 2048
"""By how many times tensors of a small version have fewer rows."""

Layout = Callable[[int, PlacedTensor], ElementCopy]


def as_it_comes(number: int, tensor: PlacedTensor) -> ElementCopy:
    """A tensor that is served as it is."""
    return ElementCopy(number, number, 0, 0, UNIT, (tensor.nbytes // UNIT,), (UNIT,), (UNIT,))


def transposed(number: int, tensor: PlacedTensor) -> ElementCopy:
    """A matrix of which an engine serves columns as rows."""
    columns = tensor.spec.shape[-1]
    height = tensor.nbytes // UNIT // columns
    return ElementCopy(number, number, 0, 0, UNIT, (height, columns), (UNIT * columns, UNIT), (UNIT, UNIT * height))


def version(small: bool) -> list[PlacedTensor]:
    """Its tensors, one behind the other."""
    shapes = mixture(1 if small else LAYERS)
    placed, at = [], 0
    for name, shape in (narrowed(shapes, SMALLER) if small else shapes).items():
        spec = TensorSpec(name, "BF16", shape)
        placed.append(PlacedTensor(spec, 0, at, spec.nbytes))
        at += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
    return placed


def carried(nbytes: int, share: float, device: torch.device) -> tuple[list[Carrier], dict[str, torch.Tensor]]:
    """Carriers of ranges that all have the same differences, each in memory of its own."""
    base = torch.zeros(min(RANGE_BYTES, nbytes), dtype=torch.uint8, device=device)
    new = base.clone()
    new.view(torch.int16)[torch.rand(len(new) // UNIT, device=device) < share] = 1
    encoded = encode(base, new, UNIT)
    carriers, raw = [], {}
    for low in range(0, nbytes - len(new) + 1, len(new)):
        carriers.append(Carrier(str(low), 0, low, len(new), UNIT, encoded.form, encoded.count))
        raw[str(low)] = encoded.raw.clone()
    return carriers, raw


def measure(small: bool, rounds: int, kernels: bool) -> Iterator[Row]:
    """A row for each layout and each share of changed elements."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    placed = version(small)
    bases = torch.tensor([1 << 40] * len(placed), device=device)
    for layout in (as_it_comes, transposed):
        copies = StridedBytes.of([layout(number, tensor) for number, tensor in enumerate(placed)])
        known = ElementMap(placed, [tensor.spec for tensor in placed], copies, device)
        for share in SHARES:
            carriers, raw = carried(placed[-1].offset + placed[-1].nbytes, share, device)
            locate = partial(locate_on_device, [(known, group) for group in of_one_range(carriers)], raw, bases)
            what = f"{layout.__name__.replace('_', ' ')}, {share:.0%} changed"
            yield _row(what, locate, carriers, sum(map(torch.Tensor.numel, raw.values())), rounds)
            if kernels:
                with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
                    locate()
                    _synchronize()
                print(what, profiled.key_averages().table(sort_by="cuda_time_total", row_limit=12), sep="\n")


def _row(
    what: str, locate: Callable[[], dict[int, Elements]], carriers: Sequence[Carrier], nbytes: int, rounds: int
) -> Row:
    found = locate()[UNIT]
    taken = _seconds(locate, rounds)
    one, other = torch.empty(
        2, (nbytes + found.addresses.nbytes + found.values.nbytes) // 2, dtype=torch.uint8, device=found.values.device
    )
    copied = _seconds(lambda: one.copy_(other), rounds)
    carrying = f"{len(found.values):,} elements in {len(carriers)} carriers, {carriers[0].form.value}"
    detail = f"{taken * 1e3:.2f} ms, the copy {copied * 1e3:.2f}; {carrying}"
    return Row(f"decode and locate, {what}", taken / copied, "a copy", "", detail)


def _seconds(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        _synchronize()
        began = time.perf_counter()
        work()
        _synchronize()
        taken.append(time.perf_counter() - began)
    return median(taken)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(
    small: Annotated[bool, typer.Option(help="A version of some MB.")] = False,
    rounds: Annotated[int, typer.Option(help="Repetitions, of which the middle counts.")] = 5,
    kernels: Annotated[bool, typer.Option(help="List each kernel, and each operation of torch.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file, and a page beside it.")] = None,
) -> None:
    """Measure on one GPU, with Triton. Needs 30 GB of its memory at full scale."""
    report(list(measure(small, rounds, kernels)), json)


if __name__ == "__main__":
    typer.run(main)
