"""Measures planning and proving 70,000 tensors for 256 ranks, and proving what concerns one sink: under 2 seconds.

Run with ``python -m benchmarks.planning``. Nothing is moved: the version is a manifest of 957 GiB, the fleet a topology
of 8 sources and 31 hosts of 8 sinks, and the relay goes over a network to one sink of every host and from there within
the host. A repetition plans and verifies from scratch; the ratio is of the median of all repetitions.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks._report import Row, report
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    RankInfo,
    Role,
    Settings,
    TensorSpec,
    Topology,
    plan,
    verify,
    verify_part,
)
from ckpt_transport.transports import registry

LIMIT_SECONDS = 2.0
RELAY = ("gloo", "shm")
TENSORS = 70_000
SHAPE = (3584, 2048)
"""Of a BF16 tensor of 14 MiB."""
SOURCES, HOSTS, SINKS_PER_HOST = 8, 31, 8
BUDGET = 1 << 30


def version() -> Manifest:
    """Every source holds an equal share of the tensors in one pool."""
    share = TENSORS // SOURCES
    extents: list[Extent] = []
    tensors: list[PlacedTensor] = []
    for source in range(SOURCES):
        for number in range(share):
            spec = TensorSpec(f"model.layers.{source}.mlp.experts.{number}.up_proj.weight", "BF16", SHAPE)
            tensors.append(PlacedTensor(spec, source, number * spec.nbytes, spec.nbytes))
        extents.append(Extent(source, share * tensors[-1].nbytes, MemoryKind.SHARED))
    return Manifest("step-2", tuple(extents), tuple(tensors))


def fleet() -> Topology:
    """Sources on hosts of their own."""
    sources = [(Role.SOURCE, f"trainer-{number}") for number in range(SOURCES)]
    sinks = [(Role.SINK, f"engine-{host}") for host in range(HOSTS) for _ in range(SINKS_PER_HOST)]
    return Topology(
        tuple(RankInfo(rank, role, host, BUDGET, RELAY) for rank, (role, host) in enumerate([*sources, *sinks]))
    )


def measure(repetitions: int = 5) -> list[Row]:
    """Plan, verify, encode and decode ``repetitions`` times."""
    manifest, topology = version(), fleet()
    traits = {name: registry.load(name).traits for name in RELAY}
    settings = Settings(transport="+".join(RELAY))
    steps: list[list[float]] = []
    for _ in range(repetitions):
        clock = [time.perf_counter()]
        made = plan(manifest, topology, traits, settings)
        clock.append(time.perf_counter())
        verify(made)
        clock.append(time.perf_counter())
        encoded = made.encode()
        clock.append(time.perf_counter())
        digest = made.digest
        clock.append(time.perf_counter())
        decoded = Plan.decode(encoded)
        clock.append(time.perf_counter())
        verify_part(decoded, SOURCES, BUDGET)
        clock.append(time.perf_counter())
        assert decoded.topology == topology
        steps.append([end - begin for begin, end in pairwise(clock)])
    both = median(planning + verifying for planning, verifying, *_ in steps)
    planning, verifying, encoding, digesting, decoding, proving = (median(times) for times in zip(*steps, strict=True))
    return [
        Row(
            f"plan and verify {TENSORS:,} tensors for {len(topology.participants)} ranks",
            both / LIMIT_SECONDS,
            f"{LIMIT_SECONDS:g} s",
            "<=1.0",
            f"{both:.2f} s: planning {planning:.2f}, verifying {verifying:.2f}; then encoding {encoding:.2f}, digest "
            f"{digesting:.2f}, decoding {decoding:.2f}, a sink's own proof {proving:.2f}; "
            f"{manifest.nbytes / 2**30:.0f} GiB, "
            f"{len(made.buckets):,} buckets, {len(made.stages):,} stages, {len(encoded) / 1e6:.1f} MB, {digest[:8]}; "
            f"medians of {repetitions}",
        )
    ]


def main(json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None) -> None:
    """Measure planning and verifying."""
    report(measure(), json)


if __name__ == "__main__":
    typer.run(main)
