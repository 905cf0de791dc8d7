"""Counts the bytes that leave each rank of FSDP2 and reach each rank of a tensor-parallel engine, against the least.

The least is what the layouts say: each rank of the engine needs its slices, and each rank of the trainer has its rows
of every tensor. A version of these parts is planned and proved; nothing is moved. Of memory that ranks map counts what
they read there.
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
from ckpt_transport.checkpoint.index_runs import chunk, strided_ranges
from ckpt_transport.memory import MemoryKind, StridedRange
from ckpt_transport.planning import (
    EVERYTHING,
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
from ckpt_transport.replay.required_bytes import MOST
from ckpt_transport.transports import registry

BUDGET = 1 << 30
LAYERS, HIDDEN, INNER, VOCABULARY = 4, 2048, 6144, 32000
EXPERTS, EXPERT = 32, 768


class Layer(NamedTuple):
    """A tensor, and along which dimension the engine cuts it; None for all of it on each rank.

    A tensor that is one of ``experts`` is on one rank of the engine, which has every so many of them.
    """

    spec: TensorSpec
    cut: int | None
    expert: int | None = None


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


def mixture() -> list[Layer]:
    """A mixture of experts, of which each is on one rank of the engine; the rest is cut as in a dense model."""
    dense = [layer for layer in model() if not layer.spec.name.endswith(("gate", "up", "down"))]
    shapes = {"gate": (EXPERT, HIDDEN), "up": (EXPERT, HIDDEN), "down": (HIDDEN, EXPERT)}
    return dense + [
        Layer(TensorSpec(f"{number}.experts.{expert}.{name}", "BF16", shape), None, expert)
        for number, expert, (name, shape) in product(range(LAYERS), range(EXPERTS), shapes.items())
    ]


def taken(layer: Layer, rank: int, ranks: int) -> list[StridedRange]:
    """The bytes of a tensor that one rank of the engine needs."""
    if layer.expert is not None:
        return sliced(layer.spec, None, 0, 1) if layer.expert % ranks == rank else []
    return sliced(layer.spec, layer.cut, rank, ranks)


def needs(layers: Sequence[Layer], rank: int, ranks: int) -> Share:
    """What one rank of the engine says that it needs, as the record of its loader has it."""
    ranges: list[tuple[str, int, int]] = []
    slices: list[tuple[str, StridedRange]] = []
    for layer in layers:
        parts, spec = taken(layer, rank, ranks), layer.spec
        if sum(part.runs for part in parts) <= MOST:
            runs = ((part.start + run * part.stride, part.nbytes) for part in parts for run in range(part.runs))
            ranges += ((spec.name, start, nbytes) for start, nbytes in runs)
            continue
        ranges.append((spec.name, 0, spec.nbytes))
        slices += ((spec.name, part) for part in parts)
    return Share(digest_of(layer.spec for layer in layers), tuple(ranges), tuple(slices))


def rows_of(layers: Sequence[Layer], rank: int, ranks: int) -> Manifest:
    """What a rank of FSDP2 has: a chunk of the rows of each tensor."""
    placed, offset = [], 0
    for spec, *_ in layers:
        for part in sliced(spec, 0, rank, ranks):
            placed.append(PlacedTensor(spec, 0, offset, part.total, part.start, part.runs, part.stride))
            offset += part.total
    return Manifest("step-2", (Extent(rank, offset, MemoryKind.SHARED),), tuple(placed))


def sliced(spec: TensorSpec, dim: int | None, rank: int, ranks: int) -> list[StridedRange]:
    """The bytes of one of ``ranks`` equal slices."""
    runs = [[(0, size)] for size in spec.shape]
    if dim is not None:
        runs[dim] = chunk(runs[dim], ranks, rank)
    return strided_ranges(spec, runs)


def brought(layers: Sequence[Layer], ranks: int, parallel: int, transport: str) -> Plan:
    """A proved plan for the trainer's ranks and the engine's."""
    version = spread("step-2", [rows_of(layers, rank, ranks) for rank in range(ranks)], {}, (), whole=False)
    shares = [needs(layers, rank, parallel) for rank in range(parallel)]
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
        for layer in layers:
            rows = sliced(layer.spec, 0, source, ranks)
            for part, own in product(taken(layer, sink, parallel), rows):
                nbytes += sum(number.total for _, number in own.common(part))
        yield source, ranks + sink, nbytes


def measure(
    ranks: Sequence[int] = (2, 4), parallel: Sequence[int] = (1, 2, 4), transport: str = "mooncake"
) -> list[Row]:
    """Rows for each number of ranks of the trainer, and of the engine."""
    models = {"TP": model(), "EP": mixture()}
    return [
        _row(name, layers, count, width, transport)
        for name, layers in models.items()
        for count in ranks
        for width in parallel
    ]


def _row(kind: str, layers: Sequence[Layer], ranks: int, parallel: int, transport: str) -> Row:
    made = brought(layers, ranks, parallel, transport)
    leaves, reaches = Counter[int](), Counter[int]()
    for number, bucket in enumerate(made.buckets):
        for sink in made.receiver_sets[bucket.receiver_set]:
            read = made.reads.of(sink, number)
            nbytes = bucket.payload if read is None else sum(part.total for part in read)
            leaves[made.owner(bucket)] += nbytes
            reaches[sink] += nbytes
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
    name = f"bytes of FSDP2 on {ranks} ranks to {kind} {parallel} over {transport}, the worst rank"
    return Row(name, max(ratios), "the least", "<=1", detail)


def main(
    transport: Annotated[str, typer.Option(help="Over which it is planned.")] = "mooncake",
    json: Annotated[Path, typer.Option(help="Write the rows to this file.")] = Path("build/shard-bytes.json"),
) -> None:
    """Plan versions of FSDP2's shards for tensor-parallel engines, and count their bytes."""
    report(measure(transport=transport), json)


if __name__ == "__main__":
    typer.run(main)
