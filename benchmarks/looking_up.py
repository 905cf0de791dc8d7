"""Measures how long a sink takes to look tensors up when an update begins, and to compare them while passes are held.

No update is run. Usage: ``python -m benchmarks.looking_up``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks._report import Row, report
from ckpt_transport_torch.engine import TorchEngine
from ckpt_transport_torch.loader_engine import LoaderEngine

TENSORS_OF_A_BLOCK = 9


class Block(torch.nn.Module):
    """As many tensors as a decoder layer has, small ones: their size does not matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(TENSORS_OF_A_BLOCK - 2))
        self.norm = torch.nn.ModuleList(torch.nn.RMSNorm(8) for _ in range(2))


def measure(tensors: int) -> list[Row]:
    """Both ways into a module of about so many tensors."""
    module = torch.nn.Sequential(*(Block() for _ in range(max(1, tensors // TENSORS_OF_A_BLOCK))))
    state = best(lambda: module.state_dict())
    count = len(module.state_dict())
    ways = {"by name": TorchEngine(module), "by a loader": LoaderEngine(module, lambda pairs: None)}
    rows = []
    for way, engine in ways.items():
        for step in (engine.begin, engine.certify):
            seconds = best(step)
            detail = f"{seconds * 1e3:.1f} ms, {seconds / count * 1e6:.1f} µs per tensor; {state * 1e3:.1f} ms"
            rows.append(Row(f"{step.__name__} {way}, {count} tensors", seconds / state, "state_dict()", "", detail))
    return rows


def best(act: Callable[[], object], times: int = 9) -> float:
    """Seconds of processor time of the quickest run."""
    found = []
    for _ in range(times):
        began = time.process_time()
        act()
        found.append(time.process_time() - began)
    return min(found)


def main(json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None) -> None:
    """Measure what looking tensors up costs."""
    report([row for tensors in (300, 10_000) for row in measure(tensors)], json)


if __name__ == "__main__":
    typer.run(main)
