"""Measures what a training loop pays per tensor and per bucket that lends the same tensors at each step.

As many tensors as half of Qwen3-30B-A3B has, of a few kilobytes each, so that copying them takes next to nothing: what
is left is host work. At each step all of them are written, lent, and brought to a module in another process. Times are
of this process's processor for lending, which waits for nothing, and of the wall clock for updates.

What a sink looks at at each step is measured by itself, in this process, and once more with an audit hook of Python, as
some libraries set one. Usage: ``python -m benchmarks.lent_steps``.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks._report import Row, report
from benchmarks._sinks import Block, SinkProcess, sinks
from ckpt_transport import Config, ParameterServer
from ckpt_transport_torch.engine import TorchEngine

COUNT = 9435
TENSOR_BYTES = 4 << 10
BUCKET_BYTES = 80 << 10
"""Twenty tensors, as a bucket of 64 MiB has of the mixture."""


class Step(NamedTuple):
    """One step: processor seconds of lending and of looking whether a loan was changed, and the update's phases."""

    lend: float
    check: float
    phases: dict[str, float]
    buckets: int


def measure(steps: int = 9) -> list[Row]:
    """Rows for lending at the second step and later, and for updates of what was lent."""
    nbytes = COUNT * TENSOR_BYTES
    tensors = {f"weights.{n}": torch.zeros(TENSOR_BYTES // 2, dtype=torch.bfloat16) for n in range(COUNT)}
    config = Config.load(transport="shm", bucket_bytes=BUCKET_BYTES)
    with sinks(1, nbytes, TENSOR_BYTES) as (sink,), ParameterServer(config) as server:
        first, *later = [_step(server, sink, tensors, number) for number in range(steps)]
        sink.ask("values")
        _, values = sink.answer()
        assert values == {float(steps - 1)}, values
    lend, check = median(step.lend for step in later), median(step.check for step in later)
    phases: defaultdict[str, float] = defaultdict(float)
    for name in first.phases:
        phases[name] = median(step.phases[name] for step in later)
    each = phases["run"] / first.buckets
    return [
        Row(
            name=f"lend {COUNT:,} tensors again",
            ratio=lend / first.lend,
            against="the first time",
            target="<=0.35",
            detail=f"{_each(lend)} and {_each(first.lend)} per tensor, to look for changes {_each(check)}",
        ),
        Row(
            name=f"update what was lent again, {first.buckets} buckets",
            ratio=sum(phases.values()) / sum(first.phases.values()),
            against="the first time",
            target="",
            detail=f"{each * 1e6:.0f} µs per bucket; {_all(phases)}; first {_all(first.phases)}",
        ),
    ]


def measure_looks(steps: int = 9) -> list[Row]:
    """Rows for what a sink looks at at each step, by the steps of its engine, and the same with an audit hook."""
    engine = TorchEngine(Block(COUNT * TENSOR_BYTES, TENSOR_BYTES))
    plain = _looks(engine, steps)
    sys.addaudithook(lambda event, arguments: None)
    audited = _looks(engine, steps)
    return [
        Row(
            name=f"look at {COUNT:,} tensors of a sink, with an audit hook",
            ratio=sum(audited.values()) / sum(plain.values()),
            against="without",
            target="<=1.1",
            detail=f"{_all_each(plain)}; with a hook {_all_each(audited)}",
        )
    ]


def _looks(engine: TorchEngine, steps: int) -> dict[str, float]:
    """Processor seconds of the steps of an update that look at all tensors; the quickest of each."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(steps):
        for look in (engine.begin, engine.confirm, engine.meanwhile, engine.certify):
            began = time.process_time()
            look()
            found[look.__name__].append(time.process_time() - began)
        engine.hold()
        engine.resume()
    return {name: min(each) for name, each in found.items()}


def _step(server: ParameterServer, sink: SinkProcess, tensors: dict[str, torch.Tensor], number: int) -> Step:
    for tensor in tensors.values():
        tensor.fill_(number)
    began = time.process_time()
    stored = server.lend("v", tensors)
    lent = time.process_time()
    for extent in stored.extents:
        extent.check()
    checked = time.process_time()
    done = server.update("v", [sink.address])
    server.unregister("v")
    assert done is not None
    return Step(lent - began, checked - lent, dict(done.phases), len(done.plan.buckets))


def _each(seconds: float) -> str:
    return f"{seconds / COUNT * 1e6:.2f} µs"


def _all_each(steps: dict[str, float]) -> str:
    return ", ".join(f"{name} {_each(seconds)}" for name, seconds in steps.items())


def _all(phases: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in phases.items() if seconds > 5e-4) + " ms"


def main(
    steps: Annotated[int, typer.Option(help="Of training.")] = 9,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure lending the same tensors at each step."""
    report(measure(steps) + measure_looks(steps), json)


if __name__ == "__main__":
    typer.run(main)
