"""Compares what the simulator predicts of the stages of updates on a GPU with when they ended.

One source, one worker that copies by name, one GPU, from the host, in place: over ``cuda_ipc``, where the source fills
slots on the GPU, with rings of one, two and four slots and buckets of 16 and 64 MiB; and over ``shm``, where the worker
brings buckets itself. Predicted are the run, the moment at which each stage of each bucket ends, and the time from one
bucket to the next, which is longer where a stage waits for a slot. Rates are those of ``ckpt-transport transports
--measure``, and nothing is fitted.

Usage: ``python -m benchmarks.gpu_stages``; with ``--predict`` it measures rates, writes predictions and stops, and with
``--to-device`` and ``--within`` it takes these rates instead. Small, without a GPU: ``--device cpu``.
"""

from __future__ import annotations

import enum
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec
import torch
import typer

from benchmarks._gpu_worker import Peer, run_worker
from benchmarks._models import Shapes, dense, narrowed, tensors
from benchmarks._report import Row, report
from ckpt_transport import Config, ParameterServer
from ckpt_transport.checkpoint.checkpoint import CheckpointFile, FileStamp
from ckpt_transport.checkpoint.header import TensorEntry
from ckpt_transport.execution import StageEvent
from ckpt_transport.planning import Settings, TensorSpec, plan
from ckpt_transport.rates import LinkKind, measure
from ckpt_transport.simulator import Cluster, manifest_of, simulate, world_of
from ckpt_transport.simulator.cluster import HostLinks

PREDICTIONS = Path(__file__).parent / "predictions"
MIB = 1 << 20
DIGITS = 6
"""Of seconds that are kept."""
LAYERS, SMALL_LAYERS, NARROWER = 12, 1, 8


class Device(enum.StrEnum):
    """Where the worker has its weights."""

    CUDA = "cuda"
    CPU = "cpu"


class Chosen(msgspec.Struct, frozen=True):
    """A plan."""

    transport: str
    bucket_mib: int
    ring_depth: int = 4

    def __str__(self) -> str:
        ring = "" if self.transport == "shm" else f", ring of {self.ring_depth}"
        return f"{self.transport}, buckets of {self.bucket_mib} MiB{ring}"


class Stages(msgspec.Struct, frozen=True):
    """When stages ended.

    Attributes:
        seconds: from the beginning of the first to the end of the last.
        ends: by kind, the end of each bucket's, in the order of buckets, since that beginning.
    """

    seconds: float
    ends: dict[str, list[float]]

    @classmethod
    def of(cls, timeline: Sequence[StageEvent]) -> Stages:
        began = min(event.start for event in timeline)
        ends: defaultdict[str, dict[int, float]] = defaultdict(dict)
        for event in timeline:
            kind = event.kind.name.lower()
            ends[kind][event.bucket] = max(round(event.end - began, DIGITS), ends[kind].get(event.bucket, 0.0))
        return cls(
            max(event.end for event in timeline) - began,
            {kind: [found[bucket] for bucket in sorted(found)] for kind, found in ends.items()},
        )

    def interval(self, kind: str) -> float:
        """Seconds from the end of one bucket's stage to that of the next, in the middle of all."""
        return median(later - earlier for earlier, later in pairwise(self.ends[kind]))


class Predicted(msgspec.Struct, frozen=True):
    """What the simulator says of one plan."""

    chosen: Chosen
    stages: Stages


class Predictions(msgspec.Struct, frozen=True):
    """The rates that were measured, in bytes per second, and what follows from them."""

    to_device: float
    within: float
    predictions: tuple[Predicted, ...]


def plans(device: Device) -> tuple[Chosen, ...]:
    if device is Device.CPU:
        return Chosen("gloo", 1), Chosen("gloo", 1, 1), Chosen("shm", 1)
    slots = [Chosen("cuda_ipc", bucket, ring) for bucket in (64, 16) for ring in (4, 2, 1)]
    return (*slots, Chosen("shm", 64), Chosen("shm", 16))


def shapes_on(device: Device) -> Shapes:
    return dense(LAYERS) if device is Device.CUDA else narrowed(dense(SMALL_LAYERS), NARROWER)


def predict(device: Device, to_device: float, within: float) -> Predictions:
    """Simulate every plan on a host with these rates."""
    on_gpu = device is Device.CUDA
    names = tuple(dict.fromkeys(chosen.transport for chosen in plans(device)))
    links = HostLinks(nic=1e9, memory=within, to_device=to_device, device=within)
    world = world_of(Cluster(hosts=1, links=links, transports=names, gpus=int(on_gpu), sinks=1), 1)
    specs = [TensorSpec(name, "BF16", tuple(shape)) for name, shape in shapes_on(device).items()]
    at, entries = 0, []
    for spec in specs:
        entries.append(TensorEntry(spec, at, spec.nbytes))
        at += spec.nbytes
    manifest = manifest_of(world, (CheckpointFile(Path("version"), FileStamp(0, 0, at, 0), tuple(entries)),))
    found = []
    for chosen in plans(device):
        settings = Settings(
            transport=chosen.transport, bucket_bytes=chosen.bucket_mib * MIB, ring_depth=chosen.ring_depth
        )
        made = plan(manifest, world.topology, world.traits, settings, world.rates)
        run = simulate(made, world, shown=range(len(world.topology.participants)))
        found.append(Predicted(chosen, Stages.of(run.timeline)))
    return Predictions(to_device, within, tuple(found))


def measured_rates(device: Device) -> tuple[float, float]:
    """Bytes per second to the GPU, and of a copy within its memory; without a GPU both of host memory."""
    rates = {rate.link.kind: rate.rate for rate in measure(lambda link, number, of: None).links}
    if device is Device.CPU:
        return rates[LinkKind.MEMORY], rates[LinkKind.MEMORY]
    return rates[LinkKind.TO_DEVICE], rates[LinkKind.DEVICE]


def updates(device: Device, every: Sequence[Chosen], repetitions: int) -> Iterator[tuple[Chosen, list[Stages]]]:
    """Bring versions to one worker by each plan; the first of each, which connects, is not told."""
    shapes = shapes_on(device)
    worker = Peer(run_worker, shapes, "cuda:0" if device is Device.CUDA else "cpu")
    address = worker.answer()
    for chosen in every:
        config = Config.load(
            transport=chosen.transport,
            bucket_bytes=chosen.bucket_mib * MIB,
            ring_depth=chosen.ring_depth,
            commit="in_place",
        )
        with ParameterServer(config) as server:
            server.register("version", tensors=tensors(shapes, 1))
            found = []
            for _ in range(repetitions + 1):
                made = server.update("version", [address])
                assert made is not None, "this is rank 0"
                found.append(Stages.of(made.timeline))
            yield chosen, found[1:]
    worker.stop()


def rows(predicted: Predicted, measured: Sequence[Stages]) -> Iterator[Row]:
    """The run, and for each kind of stage when it ended, and how long it took from one bucket to the next."""
    name, stages = str(predicted.chosen), predicted.stages
    seconds = median(each.seconds for each in measured)
    yield Row(
        f"{name}: run", stages.seconds / seconds, "measured", "", f"{stages.seconds:.4f} s predicted, {seconds:.4f} s"
    )
    for kind, ends in stages.ends.items():
        if any(len(each.ends.get(kind, ())) != len(ends) for each in measured):
            yield Row(f"{name}: {kind}", float("nan"), "measured", "", "not as many buckets were recorded")
            continue
        errors = [
            (end - other) / each.seconds for each in measured for end, other in zip(ends, each.ends[kind], strict=True)
        ]
        worst = max(errors, key=abs)
        yield Row(
            f"{name}: moments at which a {kind} ended, error as a part of the run",
            median(map(abs, errors)),
            "measured",
            "<=0.10",
            f"worst {worst:+.3f}, {len(errors)} moments",
        )
        if len(ends) > 1:
            interval = median(each.interval(kind) for each in measured)
            yield Row(
                f"{name}: from one {kind} to the next",
                stages.interval(kind) / interval,
                "measured",
                "",
                f"{stages.interval(kind) * 1e3:.3f} ms predicted, {interval * 1e3:.3f} ms",
            )


def main(
    predictions: Annotated[bool, typer.Option("--predict", help="Write predictions, and stop.")] = False,
    device: Annotated[Device, typer.Option(help="Where the worker has its weights.")] = Device.CUDA,
    to_device: Annotated[float, typer.Option(help="Bytes per second from the host; 0 to measure.")] = 0.0,
    within: Annotated[float, typer.Option(help="Bytes per second of a copy on the GPU; 0 to measure.")] = 0.0,
    repetitions: Annotated[int, typer.Option(min=1, help="Updates by each plan.")] = 5,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there, and a page beside it.")
    ] = None,
) -> None:
    path = PREDICTIONS / "gpu-stages.json"
    if predictions or device is Device.CPU:
        if not (to_device and within):
            to_device, within = measured_rates(device)
        made = predict(device, to_device, within)
        if predictions:
            path.write_bytes(msgspec.json.encode(made) + b"\n")
            return
    else:
        made = msgspec.json.decode(path.read_bytes(), type=Predictions)
    if device is Device.CUDA and not torch.cuda.is_available():
        print("there is no GPU; try --device cpu", file=sys.stderr)
        raise typer.Exit(1)
    by_plan = {str(each.chosen): each for each in made.predictions}
    found: list[Row] = []
    for chosen, measured in updates(device, [each.chosen for each in made.predictions], repetitions):
        found += rows(by_plan[str(chosen)], measured)
    report(found, json_path)


if __name__ == "__main__":
    typer.run(main)
