"""Simulates checkpoint-engine's schedule in the clusters of its README, beside the times that are published there.

Rates of links are those of data sheets, and an engine's loader needs as long per tensor as vLLM's was measured to need
on one H200 (benchmarks/results/gpu.md): nothing is fitted to the table. Ours beside it is a prediction of the same
model. Usage: ``python -m benchmarks.seed_table``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, NamedTuple

import typer
from msgspec.structs import replace

from benchmarks._report import Row, report
from ckpt_transport.planning import Settings, plan
from ckpt_transport.simulator import Cluster, Model, cluster_of, manifest_of, simulate, world_of
from ckpt_transport.simulator.checkpoint_engine import checkpoint_engine

GIB = 1 << 30
LOADER_SECONDS = 0.70 / 9216
"""Of vLLM's loader, per tensor: 9,216 tensors of a mixture took 0.70 s on one H200."""
REPLAY_SECONDS = 0.032 / 9216
"""Of our replay of its copies, per piece, there."""
BY_P2P = 16
"""So many ranks at most are updated by P2P in the table."""


class Published(NamedTuple):
    """A line of the table in checkpoint-engine's README: seconds by broadcast and by P2P."""

    model: Model
    cluster: str
    tensor_parallel: int
    gib: float
    broadcast: float
    p2p: float


def _mixture(name: str, layers: int, hidden: int, experts: int, expert_hidden: int, vocabulary: int) -> Model:
    return Model(
        name=name,
        layers=layers,
        hidden=hidden,
        experts=experts,
        expert_hidden=expert_hidden,
        vocabulary=vocabulary,
        dtype="F8_E4M3" if "FP8" in name else "BF16",
    )


GLM = _mixture("GLM-4.5-Air (BF16)", 46, 4096, 128, 1408, 151_552)
QWEN = _mixture("Qwen3-235B-A22B (BF16)", 94, 4096, 128, 1536, 151_936)
DEEPSEEK = _mixture("DeepSeek-V3.1 (FP8)", 61, 7168, 256, 2048, 129_280)
KIMI = _mixture("Kimi-K2 (FP8)", 61, 7168, 384, 2048, 163_840)
TABLE = (
    Published(GLM, "8xH800", 8, 3.02, 3.47, 4.12),
    Published(QWEN, "8xH800", 8, 2.67, 6.22, 7.10),
    Published(DEEPSEEK, "16xH20", 16, 5.39, 10.19, 11.80),
    Published(KIMI, "16xH20", 16, 5.89, 14.36, 17.49),
    Published(DEEPSEEK, "256xH20", 16, 8.00, 11.33, 11.81),
    Published(KIMI, "256xH20", 16, 8.00, 16.04, 16.75),
)


def rows(ours: int) -> Iterator[Row]:
    """Each time of the table, and what the simulator makes of it."""
    for line in TABLE:
        described = cluster_of(line.cluster)
        ranks = described.hosts * described.gpus
        specs, nbytes = list(line.model.specs()), int(line.gib * GIB)
        for how, published, receivers in (("broadcast", line.broadcast, 0), ("P2P", line.p2p, min(BY_P2P, ranks))):
            run = checkpoint_engine(
                specs,
                world_of(described, ranks),
                nbytes,
                line.tensor_parallel,
                receivers=receivers,
                piece=LOADER_SECONDS,
            )
            detail = f"{run.seconds:.2f} s simulated, {published:.2f} s published; waits for {run.resources[0].name}"
            yield Row(f"{line.model.name}, {line.cluster}, {how}", run.seconds / published, "published", "", detail)
        if ranks <= ours:
            seconds = _ours(line, described, ranks)
            detail = f"{seconds:.2f} s predicted by the same model: no measurement"
            yield Row(f"{line.model.name}, {line.cluster}, ours", seconds / line.broadcast, "published", "", detail)


def errors(found: Sequence[Row]) -> Iterator[Row]:
    """How far the simulated times are from those that are published."""
    for how in ("broadcast", "P2P"):
        off = [abs(row.ratio - 1) for row in found if row.name.endswith(how)]
        of = f"{len(off)} times of the table by {how}"
        yield Row(f"error by {how}: median", median(off), "published", "", of)
        yield Row(f"error by {how}: 95th percentile", quantiles(off, n=20, method="inclusive")[-1], "published", "", of)
        yield Row(f"error by {how}: worst", max(off), "published", "", of)


def _ours(line: Published, cluster: Cluster, ranks: int) -> float:
    """Of this library, sources beside all engines, where every engine takes its part of everything."""
    cluster = replace(cluster, costs=replace(cluster.costs, piece=REPLAY_SECONDS))
    world = world_of(cluster, ranks)
    manifest = manifest_of(world, line.model.files())
    settings = Settings(transport="nccl+cuda_ipc", bucket_bytes=GIB)
    return simulate(plan(manifest, world.topology, world.traits, settings, world.rates), world).seconds


def main(
    ours: Annotated[
        int, typer.Option(help="Plan and simulate this library's updates, too, in clusters of up to so many GPUs.")
    ] = 16,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there, and a page beside it.")
    ] = None,
) -> None:
    found = list(rows(ours))
    report([*found, *errors(found)], json_path)


if __name__ == "__main__":
    typer.run(main)
