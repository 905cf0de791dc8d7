"""Measures one tensor-parallel engine on the GPUs of one host, where checkpoint-engine's table begins.

GLM-4.5-Air on eight: each GPU has a source rank with its part of a checkpoint, and a worker that takes the slices that
vLLM's ranks take. The rows: metadata and plan; an update from the host; one of weights that trainers lend on their
GPUs; a rank that joins; the GPU memory that all this takes. Limits are plain copies in the same run, where every rank
copies its part at once. Beside them stand checkpoint-engine in the same run, where it is installed, and what the
simulator predicts. All elements of a weight are equal in a version, so that trainers take no memory for them; whether a
rank takes the right rows and columns, the comparison of its replay with its loader sees.

Usage: ``python -m benchmarks.eight_gpus --gpus 8``; small, on a CPU: ``python -m benchmarks.eight_gpus --device cpu
--gpus 2 --layers 1 --narrow 32``; only the prediction: ``--predict``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import torch
import typer
from msgspec.structs import replace
from rich.console import Console

from benchmarks import _checkpoint_engine
from benchmarks._models import Shapes, size
from benchmarks._report import Row, report
from benchmarks._situation import Brought, Situation, brought, workers_of
from benchmarks._slices import run_rank
from benchmarks._trainer import milliseconds
from benchmarks.end_to_end import Device
from benchmarks.seed_table import GLM, REPLAY_SECONDS
from ckpt_transport.planning import Settings, plan
from ckpt_transport.simulator import Cluster, Model, cluster_of, manifest_of, shares_of, simulate, world_of

console = Console(stderr=True)
GIB = 1 << 30
EXTRA = 0.35
"""GiB of a GPU's memory that an update may take."""
BEFORE_RUN = ("join", "plan", "agree", "connect")
"""Phases in which metadata is exchanged, and the plan made, proved and agreed on."""
THEIR_VERSION = 99


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
    commit: str = "in_place"

    @property
    def shapes(self) -> Shapes:
        return {spec.name: spec.shape for spec in self.model.specs()}

    @property
    def title(self) -> str:
        return f"{self.model.name}, {size(self.shapes) / 1e9:.3g} GB, {self.gpus} ranks"


def narrowed(layers: int, narrow: int) -> Model:
    """GLM-4.5-Air with so many layers, and all widths so many times smaller."""
    return replace(
        GLM,
        layers=layers,
        hidden=GLM.hidden // narrow,
        expert_hidden=GLM.expert_hidden // narrow,
        vocabulary=GLM.vocabulary // narrow,
    )


def situations(case: Case) -> dict[str, Situation]:
    """The updates, by what comes from where."""
    ranks, shapes = tuple(range(case.gpus)), case.shapes
    engine, joining = (partial(_worker, case.gpus, name) for name in ("engine", "joining"))
    updated = partial(
        Situation,
        shapes=shapes,
        trainers=ranks,
        transports=("auto",),
        limit="plain copies of each rank's part at once",
        commit=case.commit,
    )
    found = (
        updated("from the host", workers=ranks, lent=False, target="<=1.15", worker=engine),
        updated("lent by trainers", workers=ranks, lent=True, target="<=1.15", worker=engine),
        updated("a rank joins", workers=ranks[:1], lent=False, target="", worker=joining, order="update_p2p"),
    )
    return {situation.title: situation for situation in found}


def _worker(gpus: int, engine: str, rank: int) -> object:
    """What runs in the process of one rank."""
    return partial(run_rank, rank, gpus, engine)


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
    found = replace(found, hosts=1, gpus=case.gpus, costs=replace(found.costs, piece=REPLAY_SECONDS))
    if case.device is Device.CPU:
        found = replace(found, gpus=0, sinks=case.gpus, transports=("shm",))
    return found


def measure(case: Case, rounds: int) -> list[Row]:
    """All rows."""
    console.print(f"{case.title} ...")
    predicted = predict(case)
    console.print(f"  the simulator expects {milliseconds(predicted)} of an update from the host")
    found = {}
    for name, situation in situations(case).items():
        (found[name],) = brought(situation, case.device, rounds).values()
    rows = [*_ours(case, found), _predicted(case, found["from the host"], predicted)]
    if case.device is Device.CUDA and importlib.util.find_spec("checkpoint_engine") is not None:
        rows += _theirs(case, found["from the host"], rounds)
    else:
        console.print("  checkpoint-engine: not run: needs GPUs, and to be installed")
    return rows


def _ours(case: Case, found: dict[str, Brought]) -> Iterator[Row]:
    host = found["from the host"]
    for what, timed in (("first update", host.first), ("later updates", host.then[-1])):
        seconds = sum(timed.phases.get(phase, 0.0) for phase in BEFORE_RUN)
        detail = f"{milliseconds(seconds)} of {milliseconds(timed.wall)}"
        yield Row(f"{case.title}: metadata and plan, {what}", seconds / timed.wall, "all of that update", "", detail)
    for name, situation in situations(case).items():
        took = found[name]
        yield Row(f"{case.title}: {name}", took.wall / took.limit, situation.limit, situation.target, took.says)
    if case.device is Device.CUDA:
        most = max(found, key=lambda name: found[name].extra)
        each = found[most].extra / GIB / case.gpus
        detail = f"{each:.2f} GiB of each GPU, most in '{most}'"
        yield Row(f"{case.title}: extra GPU memory", each / EXTRA, f"{EXTRA} GiB", "<=1", detail)


def _predicted(case: Case, host: Brought, seconds: float) -> Row:
    run = host.then[-1].phases.get("run", 0.0)
    detail = f"run {milliseconds(run)}, {milliseconds(seconds)} simulated"
    return Row(f"{case.title}: from the host", run / seconds, f"the simulator's {case.cluster}", "", detail)


def _theirs(case: Case, host: Brought, rounds: int) -> list[Row]:
    """The same workers, updated by checkpoint-engine."""
    situation = situations(case)["from the host"]
    with workers_of(situation, case.device) as (workers, _):
        theirs = _checkpoint_engine.measure(case.shapes, workers, THEIR_VERSION, rounds)
    before = sum(host.first.phases.get(phase, 0.0) for phase in BEFORE_RUN)
    against = "checkpoint-engine, group kept"
    return [
        Row(
            f"{case.title}: metadata and plan, first update",
            before / theirs.metadata,
            against,
            "",
            f"{milliseconds(before)}, {milliseconds(theirs.metadata)}",
        ),
        Row(
            f"{case.title}: from the host",
            host.wall / theirs.update,
            against,
            "<=0.2",
            f"{milliseconds(host.wall)}, {milliseconds(theirs.update)} with {theirs.extra / GIB:.2f} GiB of each GPU",
        ),
    ]


def main(
    gpus: Annotated[int, typer.Option(min=1, help="Ranks of the engine, and source ranks, one of each on a GPU.")] = 8,
    device: Annotated[Device, typer.Option(help="Where the weights are.")] = Device.CUDA,
    layers: Annotated[int, typer.Option(min=1, help="Of the model; 46 are 212 GB.")] = GLM.layers,
    narrow: Annotated[int, typer.Option(min=1, help="By how much widths are divided.")] = 1,
    cluster: Annotated[str, typer.Option(help="What the simulator takes this host for.")] = "8xH800",
    commit: Annotated[str, typer.Option(help="As the setting; staging takes as much GPU memory again.")] = "in_place",
    rounds: Annotated[int, typer.Option(min=1, help="Updates that are counted.")] = 5,
    predict_only: Annotated[bool, typer.Option("--predict", help="Simulate, and measure nothing.")] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there, and a page beside it.")
    ] = None,
) -> None:
    """Update a tensor-parallel engine on the GPUs of this host, by the caller's wall clock."""
    case = Case(narrowed(layers, narrow), gpus, device, cluster, commit)
    if predict_only:
        seconds = predict(case)
        console.print(f"{case.title}: from the host in {milliseconds(seconds)}, as {cluster}")
        if json_path is not None:
            json_path.write_bytes(msgspec.json.encode({"case": case.title, "cluster": cluster, "seconds": seconds}))
        return
    if device is Device.CUDA and gpus > torch.cuda.device_count():
        raise typer.BadParameter(f"there are {torch.cuda.device_count()} GPUs", param_hint="--gpus")
    report(measure(case, rounds), json_path)


if __name__ == "__main__":
    typer.run(main)
