"""Simulates checkpoint-engine's schedule in the clusters of its README, beside the times that are published there.

Rates of links are those of data sheets, and an engine's loader needs as long per tensor as vLLM's was measured to need
on one H200 (benchmarks/results/gpu.md): nothing is fitted to the table. Ours beside it is a prediction of the same
model. Usage: ``python -m benchmarks.seed_table``.
"""

from __future__ import annotations

from typing import NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from ckpt_transport.planning import Settings, plan
from ckpt_transport.simulator import Model, cluster_of, manifest_of, simulate, world_of
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


def main(ours: bool = True) -> None:
    table = Table()
    for column in (
        "model",
        "cluster",
        "broadcast",
        "simulated",
        "error",
        "waits for",
        "P2P",
        "simulated",
        "error",
        "ours",
    ):
        table.add_column(column, justify="left" if column in ("model", "cluster", "waits for") else "right")
    for line in TABLE:
        world = world_of(cluster_of(line.cluster), world_ranks(line.cluster))
        specs = list(line.model.specs())
        nbytes = int(line.gib * GIB)
        runs = [
            checkpoint_engine(specs, world, nbytes, line.tensor_parallel, receivers=receivers, piece=LOADER_SECONDS)
            for receivers in (0, min(BY_P2P, world_ranks(line.cluster)))
        ]
        table.add_row(
            line.model.name,
            line.cluster,
            f"{line.broadcast:.2f} s",
            f"{runs[0].seconds:.2f} s",
            f"{runs[0].seconds / line.broadcast - 1:+.0%}",
            runs[0].resources[0].name,
            f"{line.p2p:.2f} s",
            f"{runs[1].seconds:.2f} s",
            f"{runs[1].seconds / line.p2p - 1:+.0%}",
            _ours(line) if ours else "",
        )
    Console(width=160).print(table)


def world_ranks(cluster: str) -> int:
    described = cluster_of(cluster)
    return described.hosts * described.gpus


def _ours(line: Published) -> str:
    """Of this library, sources beside all engines, where every engine takes its part of everything."""
    from msgspec.structs import replace

    cluster = cluster_of(line.cluster)
    cluster = replace(cluster, costs=replace(cluster.costs, piece=REPLAY_SECONDS))
    world = world_of(cluster, world_ranks(line.cluster))
    manifest = manifest_of(world, line.model.files())
    made = plan(
        manifest, world.topology, world.traits, Settings(transport="nccl+cuda_ipc", bucket_bytes=GIB), world.rates
    )
    return f"{simulate(made, world).seconds:.2f} s"


if __name__ == "__main__":
    typer.run(main)
