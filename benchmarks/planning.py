"""Measures planning and proving: 70,000 tensors for 256 ranks, and a trillion parameters for up to 4,096 sinks; and
simulating the latter.

Run with ``python -m benchmarks.planning``. Nothing is moved. Of the smaller world the version is a manifest of 957 GiB,
the fleet a topology of 8 sources and 31 hosts of 8 sinks, and the relay goes over a network to one sink of every host
and from there within the host. The larger ones are in ``benchmarks/_trillion.py``. All times are of the processor. A
repetition plans and verifies from scratch; the ratio is of the median of all repetitions.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec
import typer

from benchmarks import _trillion
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
from ckpt_transport.simulator import cluster_of, manifest_of, model_of, shares_of, simulate, world_of
from ckpt_transport.transports import registry

LIMIT_SECONDS = 0.5
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
        clock = [time.process_time()]
        made = plan(manifest, topology, traits, settings)
        clock.append(time.process_time())
        verify(made)
        clock.append(time.process_time())
        encoded = made.encode()
        clock.append(time.process_time())
        digest = made.digest
        clock.append(time.process_time())
        decoded = Plan.decode(encoded)
        clock.append(time.process_time())
        verify_part(decoded, SOURCES, BUDGET)
        clock.append(time.process_time())
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


def measure_large(sinks: int, transport: str, limit: float, *, shares: bool) -> Row:
    """Plan, verify, encode and decode a trillion parameters once.

    Args:
        sinks: so many.
        transport: by which broadcast tree.
        limit: seconds for planning and verifying.
        shares: sinks need their parts only, and not everything.
    """
    manifest, topology = _trillion.version(), _trillion.sharded(sinks) if shares else _trillion.fleet(sinks)
    traits = {name: registry.load(name).traits for name in _trillion.TRANSPORTS}
    clock = [time.process_time()]
    made = plan(manifest, topology, traits, Settings(transport=transport))
    clock.append(time.process_time())
    verify(made)
    clock.append(time.process_time())
    encoded = made.encode()
    clock.append(time.process_time())
    verify_part(Plan.decode(encoded), _trillion.SOURCES, _trillion.BUDGET)
    clock.append(time.process_time())
    planning, verifying, encoding, proving = (end - begin for begin, end in pairwise(clock))
    return Row(
        f"plan and verify {manifest.nbytes / 1e12:.2f} TB for {sinks:,} sinks, {'shares' if shares else 'all to all'}",
        (planning + verifying) / limit,
        f"{limit:g} s",
        "<=1.0",
        f"{planning + verifying:.2f} s: planning {planning:.2f}, verifying {verifying:.2f}; then encoding "
        f"{encoding:.2f}, a sink's decoding and own proof {proving:.2f}; {len(manifest.tensors):,} tensors, "
        f"{len(made.buckets):,} buckets, {len(made.stages):,} stages of {len(made.stages.patterns):,} patterns, "
        f"{len(made.receiver_sets)} receiver sets, {len(encoded) / 1e6:.2f} MB, {made.notes[0]}",
    )


def measure_simulated(hosts: int, limit: float) -> Row:
    """Simulate every event of an update of a trillion parameters, on so many hosts of eight GPUs.

    Args:
        hosts: so many.
        limit: seconds.
    """
    cluster = msgspec.structs.replace(cluster_of("256xH20"), hosts=hosts)
    files = model_of(Path("examples/simulate/kimi-k2.toml")).files()
    specs = [entry.spec for file in files for entry in file.tensors]
    world = world_of(cluster, SOURCES, shares_of(specs, _trillion.TENSOR_PARALLEL, _trillion.EXPERT_PARALLEL))
    made = plan(manifest_of(world, files), world.topology, world.traits, Settings(), world.rates)
    began = time.process_time()
    found = simulate(made, world)
    took = time.process_time() - began
    return Row(
        f"simulate {made.manifest.nbytes / 1e12:.2f} TB to {len(world.topology.sinks):,} sinks, all events",
        took / limit,
        f"{limit:g} s",
        "<=1.0",
        f"{took:.1f} s, {found.events:,} events; the update takes {found.seconds:.3g} s, and {found.slowest}",
    )


def main(json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None) -> None:
    """Measure planning and verifying."""
    rows = measure()
    rows.append(measure_large(1024, "mooncake-chain+shm", 4.0, shares=False))
    rows.append(measure_large(4096, "auto", 10.0, shares=True))
    rows.append(measure_simulated(512, 60.0))
    report(rows, json)


if __name__ == "__main__":
    typer.run(main)
