"""Compares what the simulator predicts of the stages of updates on GPUs with when they ended.

One source, a worker on each GPU that copies by name, from the host, in place: over ``cuda_ipc``, where the source fills
slots on a GPU, with rings of one, two and four slots and buckets of 16 and 64 MiB; and over ``shm``, where workers
bring buckets themselves. Predicted are the run, the moment at which each stage of each bucket ends, and the time from
one bucket to the next, which is longer where a stage waits for a slot. Rates are those of ``ckpt-transport transports
--measure``. What a bucket costs beside its bytes is measured with tiny buckets, for which links are no limit: what
processors do for each, and how long it takes until a slot that was read is filled again. Nothing is fitted to the
updates that are predicted.

Usage: ``python -m benchmarks.gpu_stages``; with ``--predict`` it measures rates, writes predictions and stops. Rates
that are given are not measured, such as ``--peer`` on a host with one GPU. Plans for more GPUs than there are are left
out. Small, without a GPU: ``--device cpu``.
"""

from __future__ import annotations

import enum
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec
import torch
import typer

from benchmarks._gpu_worker import Peer, run_worker
from benchmarks._models import Shapes, dense, narrowed, tensors
from benchmarks._prediction_errors import PredictedRun, error_rows, order_row
from benchmarks._report import Row, report
from ckpt_transport import Config, ParameterServer
from ckpt_transport.checkpoint.checkpoint import CheckpointFile, FileStamp
from ckpt_transport.checkpoint.header import TensorEntry
from ckpt_transport.execution import StageEvent
from ckpt_transport.planning import Settings, TensorSpec, plan
from ckpt_transport.rates import LinkKind, measure
from ckpt_transport.simulator import Cluster, manifest_of, simulate, world_of
from ckpt_transport.simulator.cluster import Costs, HostLinks, TransportRates

PREDICTIONS = Path(__file__).parent / "predictions" / "gpu-stages-costs.json"
MIB = 1 << 20
DIGITS = 6
"""Of seconds that are kept."""
LAYERS, SMALL_LAYERS, NARROWER = 12, 1, 8
TINY: Shapes = {f"tiny{number}": (MIB // 2,) for number in range(256)}
"""Tensors of 1 MiB in BF16, a bucket each."""


class Device(enum.StrEnum):
    """Where the workers have their weights."""

    CUDA = "cuda"
    CPU = "cpu"


class Chosen(msgspec.Struct, frozen=True):
    """A plan."""

    transport: str
    bucket_mib: int
    ring_depth: int = 4
    workers: int = 1

    @property
    def has_slots(self) -> bool:
        return self.transport != "shm"

    def __str__(self) -> str:
        ring = f", ring of {self.ring_depth}" if self.has_slots else ""
        workers = f", {self.workers} GPUs" if self.workers > 1 else ""
        return f"{self.transport}, buckets of {self.bucket_mib} MiB{ring}{workers}"


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

    def pace(self, kind: str) -> float:
        """The same, in the mean."""
        ends = self.ends[kind]
        return (ends[-1] - ends[0]) / (len(ends) - 1)


class Predicted(msgspec.Struct, frozen=True):
    """What the simulator says of one plan."""

    chosen: Chosen
    stages: Stages


class Rates(msgspec.Struct, frozen=True):
    """What a prediction is made of.

    Attributes:
        to_device: bytes per second from the host to a GPU.
        within: of a copy within the memory of one.
        peer: from one GPU to another.
        bucket: seconds that processors need for each bucket that goes through slots.
        apply: for each that is read where it lies.
        turnaround: seconds from when a slot was read until it is filled again, beside that.
    """

    to_device: float
    within: float
    peer: float
    bucket: float = 0.0
    apply: float = 0.0
    turnaround: float = 0.0


class Predictions(msgspec.Struct, frozen=True):
    """The rates that were measured, and what follows from them."""

    rates: Rates
    predictions: tuple[Predicted, ...]


def plans(device: Device) -> tuple[Chosen, ...]:
    if device is Device.CPU:
        return Chosen("gloo", 1), Chosen("gloo", 1, 1), Chosen("shm", 1)
    slots = [Chosen("cuda_ipc", bucket, ring) for bucket in (64, 16) for ring in (4, 2, 1)]
    several = [Chosen("cuda_ipc", 64, ring, workers=2) for ring in (4, 2, 1)]
    return (*slots, Chosen("shm", 64), Chosen("shm", 16), *several, Chosen("shm", 64, workers=2))


def shapes_on(device: Device) -> Shapes:
    return dense(LAYERS) if device is Device.CUDA else narrowed(dense(SMALL_LAYERS), NARROWER)


def predict(device: Device, chosen: Chosen, shapes: Shapes, rates: Rates) -> Predicted:
    """Simulate a plan on a host with these rates."""
    links = HostLinks(nic=1e9, memory=rates.within, to_device=rates.to_device, device=rates.within, peer=rates.peer)
    cluster = Cluster(
        hosts=1,
        links=links,
        transports=(chosen.transport,),
        gpus=chosen.workers if device is Device.CUDA else 0,
        sinks=chosen.workers,
        costs=Costs(bucket=rates.bucket if chosen.has_slots else 0.0, apply=0.0 if chosen.has_slots else rates.apply),
        transport={chosen.transport: TransportRates(turnaround=rates.turnaround)},
    )
    world = world_of(cluster, 1)
    specs = [TensorSpec(name, "BF16", tuple(shape)) for name, shape in shapes.items()]
    at, entries = 0, []
    for spec in specs:
        entries.append(TensorEntry(spec, at, spec.nbytes))
        at += spec.nbytes
    manifest = manifest_of(world, (CheckpointFile(Path("version"), FileStamp(0, 0, at, 0), tuple(entries)),))
    settings = Settings(transport=chosen.transport, bucket_bytes=chosen.bucket_mib * MIB, ring_depth=chosen.ring_depth)
    made = plan(manifest, world.topology, world.traits, settings, world.rates)
    run = simulate(made, world, shown=range(len(world.topology.participants)))
    return Predicted(chosen, Stages.of(run.timeline))


def measured_rates(device: Device) -> dict[LinkKind, float]:
    """Bytes per second of the slowest link of each kind; without a GPU those of host memory stand for the GPU's."""
    found: dict[LinkKind, float] = {}
    for rate in measure(lambda link, number, of: None).links:
        found[rate.link.kind] = min(rate.rate, found.get(rate.link.kind, rate.rate))
    if device is Device.CPU:
        found |= dict.fromkeys((LinkKind.TO_DEVICE, LinkKind.DEVICE, LinkKind.PEER), found[LinkKind.MEMORY])
    return found


def with_costs(device: Device, rates: Rates) -> Rates:
    """The same rates with what tiny buckets cost beside their bytes."""
    slots = "cuda_ipc" if device is Device.CUDA else "gloo"
    deep, lone, mapped = Chosen(slots, 1, 4), Chosen(slots, 1, 1), Chosen("shm", 1)
    taken = {
        chosen: median(each.pace("apply") for each in measured)
        for chosen, measured in updates(device, TINY, [deep, lone, mapped], repetitions=5)
    }

    def beside(chosen: Chosen, rates: Rates) -> float:
        return max(taken[chosen] - predict(device, chosen, TINY, rates).stages.pace("apply"), 0.0)

    rates = msgspec.structs.replace(rates, bucket=taken[deep], apply=beside(mapped, rates))
    return msgspec.structs.replace(rates, turnaround=beside(lone, rates))


def updates(
    device: Device, shapes: Shapes, every: Sequence[Chosen], repetitions: int
) -> Iterator[tuple[Chosen, list[Stages]]]:
    """Bring versions to workers by each plan; the first of each, which connects, is not told."""
    for count, alike in groupby(every, lambda chosen: chosen.workers):
        places = [f"cuda:{number}" if device is Device.CUDA else "cpu" for number in range(count)]
        workers = [Peer(run_worker, shapes, place) for place in places]
        addresses = [worker.answer() for worker in workers]
        for chosen in alike:
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
                    made = server.update("version", addresses)
                    assert made is not None, "this is rank 0"
                    found.append(Stages.of(made.timeline))
                yield chosen, found[1:]
        for worker in workers:
            worker.stop()


class Compared(msgspec.Struct, frozen=True):
    """A prediction, and the updates that it is of."""

    predicted: Predicted
    measured: list[Stages]

    @property
    def seconds(self) -> float:
        """Of the run, as it was measured."""
        return median(each.seconds for each in self.measured)

    @property
    def error(self) -> float:
        """Of the run, as a part of what was measured."""
        return self.predicted.stages.seconds / self.seconds - 1

    @property
    def kinds(self) -> list[str]:
        """Of stages of which as many were recorded as were predicted."""
        ends = self.predicted.stages.ends
        return [kind for kind in ends if all(len(each.ends.get(kind, ())) == len(ends[kind]) for each in self.measured)]

    def moment_errors(self, kind: str) -> list[float]:
        """Of the moments at which stages of a kind ended, as a part of the run."""
        return [
            (end - other) / each.seconds
            for each in self.measured
            for end, other in zip(self.predicted.stages.ends[kind], each.ends[kind], strict=True)
        ]


def rows(compared: Compared) -> Iterator[Row]:
    """The run, and for each kind of stage when it ended, and how long it took from one bucket to the next."""
    name, stages = str(compared.predicted.chosen), compared.predicted.stages
    detail = f"{stages.seconds:.4f} s predicted, {compared.seconds:.4f} s"
    yield Row(f"{name}: run", stages.seconds / compared.seconds, "measured", "", detail)
    for kind in stages.ends.keys() - set(compared.kinds):
        yield Row(f"{name}: {kind}", float("nan"), "measured", "", "not as many buckets were recorded")
    for kind in compared.kinds:
        errors = compared.moment_errors(kind)
        yield Row(
            f"{name}: moments at which a {kind} ended, error as a part of the run",
            median(map(abs, errors)),
            "measured",
            "<=0.10",
            f"worst {max(errors, key=abs):+.3f}, {len(errors)} moments",
        )
        if len(stages.ends[kind]) > 1:
            interval = median(each.interval(kind) for each in compared.measured)
            yield Row(
                f"{name}: from one {kind} to the next",
                stages.interval(kind) / interval,
                "measured",
                "",
                f"{stages.interval(kind) * 1e3:.3f} ms predicted, {interval * 1e3:.3f} ms",
            )


def summary(every: Sequence[Compared]) -> Iterator[Row]:
    """How large errors are over all plans, and whether the faster of two plans was predicted to be."""
    moments = [abs(error) for each in every for kind in each.kinds for error in each.moment_errors(kind)]
    yield from error_rows("runs", [abs(each.error) for each in every])
    yield from error_rows("moments at which stages ended, as a part of the run", moments)
    plans = [(each.predicted.chosen, each.predicted.stages.seconds, each.seconds) for each in every]
    yield order_row([PredictedRun(str(chosen), chosen.workers, *seconds) for chosen, *seconds in plans])


def predictions_here(device: Device, given: Rates) -> Predictions:
    """Measure what is not given, and predict every plan."""
    found = measured_rates(device)
    to_device, within = given.to_device or found[LinkKind.TO_DEVICE], given.within or found[LinkKind.DEVICE]
    rates = with_costs(device, Rates(to_device, within, given.peer or found.get(LinkKind.PEER, to_device)))
    shapes = shapes_on(device)
    return Predictions(rates, tuple(predict(device, chosen, shapes, rates) for chosen in plans(device)))


def main(
    only_predict: Annotated[bool, typer.Option("--predict", help="Write predictions, and stop.")] = False,
    device: Annotated[Device, typer.Option(help="Where the workers have their weights.")] = Device.CUDA,
    to_device: Annotated[float, typer.Option(help="Bytes per second from the host; 0 to measure.")] = 0.0,
    within: Annotated[float, typer.Option(help="Bytes per second of a copy on the GPU; 0 to measure.")] = 0.0,
    peer: Annotated[float, typer.Option(help="Bytes per second from GPU to GPU; 0 to measure.")] = 0.0,
    repetitions: Annotated[int, typer.Option(min=1, help="Updates by each plan.")] = 5,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there, and a page beside it.")
    ] = None,
) -> None:
    if device is Device.CUDA and not torch.cuda.is_available():
        print("there is no GPU; try --device cpu", file=sys.stderr)
        raise typer.Exit(1)
    if only_predict or device is Device.CPU:
        made = predictions_here(device, Rates(to_device, within, peer))
        if only_predict:
            print(made.rates)
            PREDICTIONS.write_bytes(msgspec.json.encode(made) + b"\n")
            return
    else:
        made = msgspec.json.decode(PREDICTIONS.read_bytes(), type=Predictions)
    most = torch.cuda.device_count() if device is Device.CUDA else 1
    by_plan = {str(each.chosen): each for each in made.predictions if each.chosen.workers <= most}
    every = [each.chosen for each in by_plan.values()]
    compared = [
        Compared(by_plan[str(chosen)], measured)
        for chosen, measured in updates(device, shapes_on(device), every, repetitions)
    ]
    report([*summary(compared), *(row for each in compared for row in rows(each))], json_path)


if __name__ == "__main__":
    typer.run(main)
