"""Counts the bytes that leave each rank of FSDP2 and reach each rank of a tensor-parallel engine, against the least.

The least is what the layouts say: each rank of the engine needs its slices, and each rank of the trainer has its rows
of every tensor. A version of these parts is planned and proved; nothing is moved. Ranks that map memory read less than
the plan brings within their reach; :mod:`benchmarks.slices` counts that.
Usage: ``python -m benchmarks.shard_bytes``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from benchmarks._report import Row, report
from ckpt_transport.checkpoint.shards import byte_ranges, chunk
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    EVERYTHING,
    ByteRange,
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    RankInfo,
    Role,
    Settings,
    Share,
    TensorSpec,
    Topology,
    digest_of,
    plan,
    spread,
    verify,
)
from ckpt_transport.transports import registry

BUDGET = 1 << 30
LAYERS, HIDDEN, INNER, VOCABULARY = 4, 2048, 6144, 32000


class Layer(NamedTuple):
    """A tensor, and along which dimension the engine cuts it; None for all of it on each rank."""

    spec: TensorSpec
    cut: int | None


def model() -> list[Layer]:
    """A dense model of the shapes of a Llama."""
    shapes: list[tuple[str, tuple[int, ...], int | None]] = [("embed_tokens", (VOCABULARY, HIDDEN), 0)]
    for number in range(LAYERS):
        shapes += [
            (f"{number}.norm", (HIDDEN,), None),
            *((f"{number}.{name}", (HIDDEN, HIDDEN), 0) for name in ("q", "k", "v")),
            (f"{number}.o", (HIDDEN, HIDDEN), 1),
            *((f"{number}.{name}", (INNER, HIDDEN), 0) for name in ("gate", "up")),
            (f"{number}.down", (HIDDEN, INNER), 1),
        ]
    return [Layer(TensorSpec(name, "BF16", shape), cut) for name, shape, cut in shapes]


def rows_of(layers: Sequence[Layer], rank: int, ranks: int) -> Manifest:
    """What a rank of FSDP2 has: a chunk of the rows of each tensor."""
    placed, offset = [], 0
    for spec, _ in layers:
        for start, end in sliced(spec, 0, rank, ranks):
            placed.append(PlacedTensor(spec, 0, offset, end - start, start))
            offset += end - start
    return Manifest("step-2", (Extent(rank, offset, MemoryKind.SHARED),), tuple(placed))


def sliced(spec: TensorSpec, dim: int | None, rank: int, ranks: int) -> list[ByteRange]:
    """The bytes of one of ``ranks`` equal slices."""
    runs = [[(0, size)] for size in spec.shape]
    if dim is not None:
        runs[dim] = chunk(runs[dim], ranks, rank)
    return byte_ranges(spec, runs)


def brought(layers: Sequence[Layer], ranks: int, parallel: int, transport: str) -> Plan:
    """A proved plan for the trainer's ranks and the engine's."""
    version = spread("step-2", [rows_of(layers, rank, ranks) for rank in range(ranks)], {}, (), whole=False)
    specs = digest_of(layer.spec for layer in layers)
    shares = [
        Share(
            specs,
            tuple(
                (spec.name, start, end - start)
                for spec, cut in layers
                for start, end in sliced(spec, cut, rank, parallel)
            ),
        )
        for rank in range(parallel)
    ]
    sources = [RankInfo(rank, Role.SOURCE, "host", BUDGET, (transport,)) for rank in range(ranks)]
    sinks = [
        RankInfo(ranks + rank, Role.SINK, "host", BUDGET, (transport,), share=rank if parallel > 1 else EVERYTHING)
        for rank in range(parallel)
    ]
    fleet = Topology((*sources, *sinks), tuple(shares) if parallel > 1 else ())
    made = plan(version, fleet, {transport: registry.load(transport).traits}, Settings(transport=transport))
    verify(made)
    return made


def least(layers: Sequence[Layer], ranks: int, parallel: int) -> Iterator[tuple[int, int, int]]:
    """The bytes that each source has of what each sink needs: source, sink, bytes."""
    for source, sink in product(range(ranks), range(parallel)):
        nbytes = 0
        for spec, cut in layers:
            rows = sliced(spec, 0, source, ranks)
            for start, end in sliced(spec, cut, sink, parallel):
                nbytes += sum(max(min(end, e) - max(start, s), 0) for s, e in rows)
        yield source, ranks + sink, nbytes


def measure(
    ranks: Sequence[int] = (2, 4), parallel: Sequence[int] = (1, 2, 4), transport: str = "mooncake"
) -> list[Row]:
    """Rows for each number of ranks of the trainer, and of the engine."""
    layers = model()
    return [_row(layers, count, width, transport) for count in ranks for width in parallel]


def _row(layers: Sequence[Layer], ranks: int, parallel: int, transport: str) -> Row:
    made = brought(layers, ranks, parallel, transport)
    leaves, reaches = Counter[int](), Counter[int]()
    for bucket in made.buckets:
        for sink in made.receiver_sets[bucket.receiver_set]:
            leaves[made.owner(bucket)] += bucket.payload
            reaches[sink] += bucket.payload
    least_leaves, least_reaches = Counter[int](), Counter[int]()
    for source, sink, nbytes in least(layers, ranks, parallel):
        least_leaves[source] += nbytes
        least_reaches[sink] += nbytes
    ratios = [leaves[rank] / least_leaves[rank] for rank in least_leaves]
    ratios += [reaches[rank] / least_reaches[rank] for rank in least_reaches]
    detail = (
        f"{min(leaves.values()) / 1e6:.1f} to {max(leaves.values()) / 1e6:.1f} MB leave each rank, "
        f"{min(reaches.values()) / 1e6:.1f} to {max(reaches.values()) / 1e6:.1f} MB reach each; "
        f"{len(made.buckets)} buckets"
    )
    name = f"bytes of FSDP2 on {ranks} ranks to TP {parallel} over {transport}, the worst rank"
    return Row(name, max(ratios), "the least", "<=1", detail)


def main(
    transport: Annotated[str, typer.Option(help="Over which it is planned.")] = "mooncake",
    json: Annotated[Path, typer.Option(help="Write the rows to this file.")] = Path("build/shard-bytes.json"),
) -> None:
    """Plan versions of FSDP2's shards for tensor-parallel engines, and count their bytes."""
    report(measure(transport=transport), json)


if __name__ == "__main__":
    typer.run(main)
