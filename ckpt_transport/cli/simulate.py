"""``ckpt-transport simulate`` runs a plan in a cluster that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ckpt_transport.cli.options import AsJson, BucketBytes, OptionsError, RingDepth, Trace, Transport
from ckpt_transport.cli.output import Output

if TYPE_CHECKING:
    from ckpt_transport.planning import Plan
    from ckpt_transport.simulator import Death, Simulated

SHOWN = 6
"""So many ranks are drawn: the first source and sinks from the first to the last."""


def simulate(
    cluster: Annotated[
        str,
        typer.Option(
            help="TOML file that describes hosts and links, or a cluster that comes with the library: 8xH200, "
            "8xH800, 16xH20, 256xH20.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A safetensors file, or a directory; only headers are read.", exists=True),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="TOML file with a table 'model', from which shapes are made.", exists=True)
    ] = None,
    sources: Annotated[
        int | None, typer.Option(min=1, help="Source ranks, spread over the hosts.", show_default="one per GPU")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Ranks that share the rows of weights.")] = 1,
    expert_parallel: Annotated[int, typer.Option(min=1, help="Ranks that share the experts of a layer.")] = 1,
    transport: Transport = None,
    bucket_bytes: BucketBytes = None,
    ring_depth: RingDepth = None,
    dies: Annotated[
        str | None, typer.Option(help="A rank that dies, and after how many seconds, as '3@1.5'.", show_default=False)
    ] = None,
    trace: Trace = None,
    goal: Annotated[
        Path | None,
        typer.Option(
            help="Write the plan as a schedule in GOAL to this file, for LogGOPSim or ATLAHS.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Plan an update for a cluster that is described, run the plan in a model of it, and say what it waits for.

    Links are shared max-min fair, ranks need their time per bucket, and slots and credit are the plan's. Nothing is
    moved, and what transports find on this machine does not matter.
    """
    from ckpt_transport.checkpoint import from_path
    from ckpt_transport.cli.progress import bar
    from ckpt_transport.config import Config
    from ckpt_transport.execution import write_trace
    from ckpt_transport.planning import Settings, verify
    from ckpt_transport.planning import plan as make_plan
    from ckpt_transport.service.trace import check_trace
    from ckpt_transport.simulator import cluster_of, manifest_of, model_of, shares_of, world_of, write_goal
    from ckpt_transport.simulator import simulate as run

    given = Config.load(None, transport=transport, bucket_bytes=bucket_bytes, ring_depth=ring_depth, trace=trace)
    check_trace(given)
    if checkpoint is not None and model is None:
        files = from_path(checkpoint)
    elif model is not None and checkpoint is None:
        files = model_of(model).files()
    else:
        raise OptionsError("give the shapes by --checkpoint or by --model, one of the two")
    described = cluster_of(cluster)
    console = Output(stderr=as_json)
    with bar(console, "planning"):
        specs = [entry.spec for file in files for entry in file.tensors]
        world = world_of(
            described,
            sources or max(described.gpus * described.hosts, 1),
            shares_of(specs, tensor_parallel, expert_parallel),
        )
        death = _death(dies, len(world.topology.participants), given.heartbeat_timeout)
        made = make_plan(
            manifest_of(world, files),
            world.topology,
            world.traits,
            Settings(transport=given.transport, bucket_bytes=given.bucket_bytes, ring_depth=given.ring_depth),
            world.rates,
        )
        verify(made)
        if goal is not None:
            write_goal(goal, made, world)
    with bar(console, "simulating") as shown:
        found = run(made, world, shown=_shown(made), death=death, progress=shown)
    labels = {rank: world.topology.participants[rank].label for rank in _shown(made)}
    if trace is not None:
        write_trace(trace, found.timeline, labels)
    if as_json:
        Output().write_bytes(msgspec.json.encode(found))
        return
    text = "\n".join(_told(made, found, labels, described.assumed, death))
    console.print(text, highlight=False, soft_wrap=True)


def _death(given: str | None, ranks: int, noticed: float) -> Death | None:
    """
    Raises:
        OptionsError: it is not a rank and a time.
    """
    from ckpt_transport.simulator import Death

    if given is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})@([0-9]{1,9}(?:\.[0-9]{1,9})?)", given)
    if found is None or int(found[1]) >= ranks:
        raise OptionsError(
            f"--dies '{given}' is no rank and time; write RANK@SECONDS, with a rank from 0 to {ranks - 1}"
        )
    return Death(int(found[1]), float(found[2]), noticed)


def _shown(plan: Plan) -> list[int]:
    """The ranks that are drawn."""
    sinks = plan.topology.sinks
    every = max((len(sinks) - 1) / (SHOWN - 2), 1)
    chosen = {round(number * every) for number in range(SHOWN - 1)}
    return [plan.topology.sources[0], *(sinks[number] for number in sorted(chosen) if number < len(sinks))]


def _told(plan: Plan, found: Simulated, labels: Mapping[int, str], assumed: bool, death: Death | None) -> Iterator[str]:
    """What people are told, as lines."""
    from ckpt_transport.execution import draw
    from ckpt_transport.sizes import count, duration, size

    topology = plan.topology
    hosts = len({participant.host for participant in topology.participants})
    ranks = f"{count(len(topology.sources), 'source')}, {count(len(topology.sinks), 'sink')}, {count(hosts, 'host')}"
    yield f"moves     {size(plan.manifest.nbytes)} in {count(len(plan.buckets), 'bucket')}; {ranks}"
    yield f"by        {plan.notes[0]}"
    if found.complete:
        yield f"takes     {duration(found.seconds)}; the planner counted on {duration(plan.prediction.seconds)}"
    else:
        assert death is not None
        yield (
            f"fails     after {duration(found.seconds)}: {topology.participants[death.rank].label} dies at "
            f"{death.seconds:g} s, and the others notice {death.noticed:g} s later; {found.applied:,} of "
            f"{found.applies:,} buckets had been applied"
        )
    for number, each in enumerate(found.resources):
        crossed = f", {size(each.nbytes)}" if each.nbytes else ""
        others = f" (of {each.alike} alike)" if each.alike > 1 else ""
        share = each.busy / found.seconds if found.seconds else 0.0
        busy = f"busy for {duration(each.busy)} ({share:.0%}){crossed}"
        yield f"{'' if number else 'slowest':<10}{each.name}{others}: {busy}"
    yield "stages    " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in found.stages.items())
    if assumed:
        yield "rates     are of data sheets, not of measurements: a prediction for orientation"
    yield f"simulated {found.events:,} events in {duration(found.took)}"
    yield ""
    yield draw(found.timeline, labels)
