"""Measures one tensor-parallel engine on the GPUs of one host, where checkpoint-engine's table begins.

GLM-4.5-Air on eight: each GPU has a source rank with its part of a checkpoint, and a worker that takes the slices that
vLLM's ranks take. The rows: metadata and plan; an update from the host; a rank that joins; an update of weights that
trainers lend on their GPUs; the GPU memory that all this takes. Limits are plain copies in the same run, where every
rank copies its part at once. Beside them stand checkpoint-engine in the same run, where it is installed, and what the
simulator predicts. The sources have one pool for all of this. All elements of a weight are equal in a version, so that
trainers take no memory for them; whether a rank takes the right rows and columns, the comparison of its replay with its
loader sees.

A pool is made at about a gigabyte a second where the host must find memory for it first, so fewer ``--layers`` are
sooner measured: two are 12 GB. With ``--seconds`` no row is begun after that time.

Usage: ``python -m benchmarks.eight_gpus --gpus 8``; small, on a CPU: ``python -m benchmarks.eight_gpus --device cpu
--gpus 2 --layers 1 --narrow 32``; only the prediction: ``--predict``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import torch
import typer
from msgspec import structs

from benchmarks import _checkpoint_engine
from benchmarks._attempts import Attempts, Seconds, console
from benchmarks._brought import AUTO, Brought, Variant
from benchmarks._gpu_worker import Peer, peers
from benchmarks._models import Shapes, size
from benchmarks._report import Row, report
from benchmarks._situation import bring
from benchmarks._slices import run_rank
from benchmarks._trainer import Timed, milliseconds
from benchmarks._trainers import JOINS, LENDS, POOLS, Trainers, opened, place, trainer_ranks
from benchmarks.end_to_end import Commit, Device
from benchmarks.seed_table import GLM, REPLAY_SECONDS
from ckpt_transport.planning import Settings, plan
from ckpt_transport.simulator import Cluster, Model, cluster_of, manifest_of, shares_of, simulate, world_of

GIB = 1 << 30
EXTRA = 0.35
"""GiB of a GPU's memory that an update may take."""
BEFORE_RUN = ("join", "plan", "agree", "connect")
"""Phases in which metadata is exchanged, and the plan made, proved and agreed on."""
HOST, JOINED, LENT = "from the host", "a rank joins", "lent by trainers"
COPIES = "plain copies of each rank's part at once"


class Case(NamedTuple):
    """What is measured.

    Attributes:
        model: whose shapes.
        gpus: how many ranks the engine has, and how many sources there are.
        device: where weights are.
        cluster: what the simulator takes for this host.
        commit: how the version is taken; checkpoint-engine writes in place.
    """

    model: Model
    gpus: int
    device: Device
    cluster: str
    commit: Commit = Commit.IN_PLACE

    @property
    def shapes(self) -> Shapes:
        return {spec.name: spec.shape for spec in self.model.specs()}

    @property
    def title(self) -> str:
        return f"{self.model.name}, {size(self.shapes) / 1e9:.3g} GB, {self.gpus} ranks"


def narrowed(layers: int, narrow: int) -> Model:
    """GLM-4.5-Air with so many layers, and all widths so many times smaller."""
    return structs.replace(
        GLM,
        layers=layers,
        hidden=GLM.hidden // narrow,
        expert_hidden=GLM.expert_hidden // narrow,
        vocabulary=GLM.vocabulary // narrow,
    )


def predict(case: Case) -> float:
    """Seconds that the simulator expects of an update from the host."""
    cluster = _cluster(case)
    specs = list(case.model.specs())
    world = world_of(cluster, case.gpus, shares_of(specs, case.gpus, 1))
    made = plan(
        manifest_of(world, case.model.files()), world.topology, world.traits, Settings(bucket_bytes=GIB), world.rates
    )
    return simulate(made, world).seconds


def _cluster(case: Case) -> Cluster:
    """This host, with links as the cluster file says."""
    found = cluster_of(case.cluster)
    found = structs.replace(found, hosts=1, gpus=case.gpus, costs=structs.replace(found.costs, piece=REPLAY_SECONDS))
    if case.device is Device.CPU:
        found = structs.replace(found, gpus=0, sinks=case.gpus, transports=("shm",))
    return found


def measure(case: Case, rounds: int, attempts: Attempts) -> Iterator[Row]:
    """All rows, while there is time."""
    console.print(f"{case.title} ...")
    predicted, every = predict(case), range(case.gpus)
    console.print(f"  the simulator expects {milliseconds(predicted)} of an update from the host")
    found: dict[str, Brought] = {}
    device = case.device.value
    engine_ranks = [(run_rank, rank, case.gpus, "engine", case.shapes, place(device, rank)) for rank in every]
    joining_rank = [(run_rank, 0, case.gpus, "joining", case.shapes, place(device, 0))]
    with peers(engine_ranks) as engine, peers(joining_rank) as joining, trainer_ranks(device, every) as ranks:
        pooled = Trainers(ranks, POOLS, case.shapes, [rank.answer() for rank in engine], every)
        joined = replace(pooled, orders=JOINS, addresses=[rank.answer() for rank in joining])
        lent = replace(pooled, orders=LENDS)
        measured = partial(_measured, case, rounds, found)
        with opened(ranks, Variant(AUTO, case.commit.value)):
            yield from attempts.rows(HOST, measured(HOST, pooled, engine, 1, "<=1.15"))
            if HOST in found:
                yield from _of_the_host(case, found[HOST], predicted)
            yield from attempts.rows(JOINED, measured(JOINED, joined, joining, 1, ""))
            yield from attempts.rows(LENT, measured(LENT, lent, engine, 2, "<=1.15"))
        yield from _extra(case, found)
        if missing := _checkpoint_engine.missing():
            console.print(f"  checkpoint-engine: not run: {missing}")
        elif HOST in found:
            yield from attempts.rows(_checkpoint_engine.AGAINST, _theirs(case, engine, found[HOST], rounds))


def _measured(
    case: Case,
    rounds: int,
    found: dict[str, Brought],
    name: str,
    trainers: Trainers,
    workers: Sequence[Peer],
    version: int,
    target: str,
) -> Iterator[Row]:
    found[name] = took = bring(trainers, workers, version, rounds)
    console.print(f"  {name}: {took.says}")
    yield took.row(f"{case.title}: {name}", COPIES, target)


def _of_the_host(case: Case, host: Brought, predicted: float) -> Iterator[Row]:
    """What metadata and plan take of an update from the host, and what the simulator said of it."""
    for what, timed in (("warm-up before the first update", host.warmed), ("later updates", host.middle)):
        assert timed is not None
        seconds = _before_run(timed)
        detail = f"{milliseconds(seconds)} of {milliseconds(timed.wall)}"
        yield Row(f"{case.title}: metadata and plan, {what}", seconds / timed.wall, "all of that", "", detail)
    run = host.middle.phases.get("run", 0.0)
    detail = f"run {milliseconds(run)}, {milliseconds(predicted)} simulated"
    yield Row(f"{case.title}: {HOST}", run / predicted, f"the simulator's {case.cluster}", "", detail)


def _extra(case: Case, found: Mapping[str, Brought]) -> Iterator[Row]:
    """What an update takes of each GPU's memory, of all kinds of update the most."""
    extras = {name: took.extra for name, took in found.items() if took.extra is not None}
    if extras:
        most = max(extras, key=lambda name: extras[name].later)
        first, later = (nbytes / GIB / case.gpus for nbytes in extras[most])
        detail = f"{later:.2f} GiB of each GPU, {first:.2f} at the first update, most in '{most}'"
        yield Row(f"{case.title}: extra GPU memory", later / EXTRA, f"{EXTRA} GiB", "<=1", detail)


def _theirs(case: Case, engine: Sequence[Peer], host: Brought, rounds: int) -> Iterator[Row]:
    """The same workers, updated by checkpoint-engine."""
    theirs = _checkpoint_engine.measure(case.shapes, engine, rounds)
    console.print(f"  {theirs}")
    assert host.warmed is not None
    before = _before_run(host.warmed)
    detail = f"{milliseconds(before)}, {milliseconds(theirs.metadata)}"
    name = f"{case.title}: metadata and plan, first of all"
    yield Row(name, before / theirs.metadata, _checkpoint_engine.AGAINST, "", detail)
    yield theirs.row(f"{case.title}: {HOST}", host, "<=0.2")


def _before_run(timed: Timed) -> float:
    return sum(timed.phases.get(phase, 0.0) for phase in BEFORE_RUN)


def main(
    gpus: Annotated[int, typer.Option(min=1, help="Ranks of the engine, and source ranks, one of each on a GPU.")] = 8,
    device: Annotated[Device, typer.Option(help="Where the weights are.")] = Device.CUDA,
    layers: Annotated[int, typer.Option(min=1, help="Of the model; 46 are 212 GB.")] = GLM.layers,
    narrow: Annotated[int, typer.Option(min=1, help="By how much widths are divided.")] = 1,
    cluster: Annotated[str, typer.Option(help="What the simulator takes this host for.")] = "8xH800",
    commit: Annotated[
        Commit, typer.Option(help="As the setting; staging takes as much GPU memory again.")
    ] = Commit.IN_PLACE,
    rounds: Annotated[int, typer.Option(min=1, help="Updates that are counted.")] = 5,
    seconds: Seconds = inf,
    predict_only: Annotated[bool, typer.Option("--predict", help="Simulate, and measure nothing.")] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there, and a page beside it.")
    ] = None,
) -> None:
    """Update a tensor-parallel engine on the GPUs of this host, by the caller's wall clock."""
    case = Case(narrowed(layers, narrow), gpus, device, cluster, commit)
    if predict_only:
        predicted = predict(case)
        console.print(f"{case.title}: from the host in {milliseconds(predicted)}, as {cluster}")
        if json_path is not None:
            json_path.write_bytes(msgspec.json.encode({"case": case.title, "cluster": cluster, "seconds": predicted}))
        return
    if device is Device.CUDA and gpus > torch.cuda.device_count():
        raise typer.BadParameter(f"there are {torch.cuda.device_count()} GPUs", param_hint="--gpus")
    attempts = Attempts(seconds)
    report(measure(case, rounds, attempts), json_path)
    attempts.end()


if __name__ == "__main__":
    typer.run(main)
