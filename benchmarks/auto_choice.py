"""Measures what ``auto`` chooses against every transport that can run here, by name, by the caller's wall clock.

The links of this host are measured first. Then a source updates modules in other processes, over ``auto`` and over each
transport in turns, each turn in another order: large weights, many small ones, two sinks, two sources. The routes of
all stay open. What the plan of ``auto`` predicted is held against what its phase ``run`` took. Usage: ``python -m
benchmarks.auto_choice``.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks._report import Row, report
from benchmarks._sinks import SinkProcess, sinks, tensors
from ckpt_transport import Config, ParameterServer, Report
from ckpt_transport.planning import AUTO
from ckpt_transport.rates import keep
from ckpt_transport.rates import measure as measure_links
from ckpt_transport.transports import registry


class Shape(NamedTuple):
    """What is moved, between how many."""

    name: str
    mib: int
    piece_bytes: int
    sources: int = 1
    sinks: int = 1


SHAPES = (
    Shape("large weights", 128, 16 << 20),
    Shape("many small weights", 48, 64 << 10),
    Shape("two sinks", 96, 4 << 20, sinks=2),
    Shape("two sources", 96, 4 << 20, sources=2),
)


class Timed(NamedTuple):
    """One update: by the wall clock, and as its report has it."""

    wall: float
    report: Report


def measure(updates: int = 5) -> list[Row]:
    """A row for each shape."""
    with tempfile.TemporaryDirectory() as cache, _environment("XDG_CACHE_HOME", cache):
        keep(measure_links(lambda *_: None))
        return [_row(shape, updates) for shape in SHAPES]


def _row(shape: Shape, updates: int) -> Row:
    named = [name for name in registry.names() if registry.available(name).ok]
    found = _updates(shape, (AUTO, *named), updates)
    walls = {name: median(each.wall for each in timed) for name, timed in found.items()}
    best = min(named, key=lambda name: walls[name])
    plan = found[AUTO][-1].report.plan
    run = median(each.report.phases["run"] for each in found[AUTO])
    return Row(
        name=f"auto, {shape.name}, {shape.mib} MiB",
        ratio=walls[AUTO] / walls[best],
        against="the best by name",
        target="<=1.05",
        detail=f"auto takes {plan.notes[0].removeprefix('transport ')}: {_ms(walls[AUTO])}; "
        + ", ".join(f"{name} {_ms(walls[name])}" for name in sorted(named, key=walls.__getitem__))
        + f"; run {_ms(run)}, predicted {_ms(plan.prediction.seconds)}",
    )


def _updates(shape: Shape, transports: tuple[str, ...], updates: int) -> dict[str, list[Timed]]:
    """So many updates over each transport, in turns, after one that opens its routes."""
    found: dict[str, list[Timed]] = {name: [] for name in transports}
    nbytes = shape.mib << 20
    with sinks(shape.sinks, nbytes, shape.piece_bytes) as running, ExitStack() as stack:
        worlds = {name: stack.enter_context(_sources(shape, name)) for name in transports}
        for turn in range(updates + 1):
            order = transports[turn % len(transports) :] + transports[: turn % len(transports)]
            for name in order:
                timed = _update(worlds[name], running)
                if turn:
                    found[name].append(timed)
        for sink in running:
            sink.ask("values")
            _, values = sink.answer()
            assert values == {_value(order[-1])}, values
    return found


def _update(servers: list[ParameterServer], running: list[SinkProcess]) -> Timed:
    with ThreadPoolExecutor(len(servers)) as ranks:
        began = time.perf_counter()
        done = [ranks.submit(server.update, "v", [sink.address for sink in running]) for server in servers]
        reports = [each.result() for each in done]
        wall = time.perf_counter() - began
    assert reports[0] is not None
    return Timed(wall, reports[0])


@contextmanager
def _sources(shape: Shape, transport: str) -> Iterator[list[ParameterServer]]:
    """The source ranks that hold the weights, each as many tensors as the others."""
    weights = tensors(shape.mib << 20, _value(transport), shape.piece_bytes)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = Config.load(transport=transport, coordinator=f"ipc://{folder}/coordinator.sock")
        servers = [
            stack.enter_context(ParameterServer(settings, rank=rank, world_size=shape.sources))
            for rank in range(shape.sources)
        ]
        with ThreadPoolExecutor(len(servers)) as ranks:
            names = sorted(weights)
            own = [{name: weights[name] for name in names[rank :: shape.sources]} for rank in range(shape.sources)]
            for taken in [ranks.submit(_register, *each) for each in zip(servers, own, strict=True)]:
                taken.result()
        yield servers


def _value(transport: str) -> float:
    """Of every element that comes over that transport."""
    return float([AUTO, *registry.names()].index(transport))


def _register(server: ParameterServer, weights: Mapping[str, torch.Tensor]) -> None:
    server.register("v", tensors=weights)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Within the block a variable has that value, here and in processes that are started."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def main(
    updates: Annotated[int, typer.Option(help="Repetitions.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Hold what auto chooses against every transport by name."""
    report(measure(updates), json)


if __name__ == "__main__":
    typer.run(main)
