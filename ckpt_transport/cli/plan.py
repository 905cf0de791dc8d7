"""``ckpt-transport plan`` shows what an update would do, without doing it."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ckpt_transport.cli.options import (
    AsJson,
    BucketBytes,
    Checkpoint,
    ConfigFile,
    MemoryBudget,
    OptionsError,
    RingDepth,
    Transport,
)
from ckpt_transport.cli.output import Output

if TYPE_CHECKING:
    from ckpt_transport.config import Config
    from ckpt_transport.transports.interface import Traits

MOST_RANKS = 65_536
"""More are a slip of the hand: half a minute and 2 GB."""


def plan(
    checkpoint: Checkpoint,
    sources: Annotated[int, typer.Option(min=1, help="Source ranks that share the checkpoint.")] = 1,
    hosts: Annotated[int, typer.Option(min=1, help="Hosts; sources and sinks are spread over them evenly.")] = 1,
    sinks: Annotated[int, typer.Option(min=1, help="Sinks on each host: --hosts 4 --sinks 8 are 32.")] = 2,
    version: Annotated[str, typer.Option(help="Name of the version.")] = "next",
    whole_tensors: Annotated[bool, typer.Option(help="The sinks' loader cannot take a tensor in pieces.")] = False,
    transport: Transport = None,
    bucket_bytes: BucketBytes = None,
    ring_depth: RingDepth = None,
    memory_budget: MemoryBudget = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Plan an update of a checkpoint for an imagined fleet of hosts like this one, prove the plan, and explain it.

    Reads headers only. The hosts' links are as fast as those here were measured to be, and between hosts transports
    count on the RDMA devices that are here.
    """
    from ckpt_transport.checkpoint import from_path, outline
    from ckpt_transport.config import Config
    from ckpt_transport.memory import MemoryKind, default_budget
    from ckpt_transport.planning import RankInfo, Role, Settings, Topology, explain, verify
    from ckpt_transport.planning import plan as make_plan
    from ckpt_transport.rates import kept
    from ckpt_transport.update.available import check, states

    if (ranks := sources + hosts * sinks) > MOST_RANKS:
        raise OptionsError(
            f"--sources {sources} and --hosts {hosts} with --sinks {sinks} on each are {ranks:,} ranks; a plan is made "
            f"for at most {MOST_RANKS:,}"
        )
    settings = Config.load(
        config, transport=transport, bucket_bytes=bucket_bytes, ring_depth=ring_depth, memory_budget=memory_budget
    )
    pool = MemoryKind.SHARED if settings.pool == "auto" else MemoryKind(settings.pool)
    manifest = outline(version, from_path(checkpoint), sources, pool)
    check(settings)
    available = tuple(name for name, state in states(settings).items() if state.ok)
    budget = settings.memory_budget or default_budget()
    topology = Topology(
        tuple(RankInfo(rank, Role.SOURCE, f"host{rank % hosts}", budget, available) for rank in range(sources))
        + tuple(
            RankInfo(
                sources + number,
                Role.SINK,
                f"host{number // sinks}",
                budget,
                available,
                whole_tensors=whole_tensors,
            )
            for number in range(hosts * sinks)
        )
    )
    here = kept()
    started = time.perf_counter()
    made = make_plan(
        manifest,
        topology,
        _traits(available, hosts, settings),
        Settings(
            transport=settings.transport,
            bucket_bytes=settings.bucket_bytes,
            ring_depth=settings.ring_depth,
            digests=settings.integrity == "always",
        ),
        {} if here is None else {participant.host: here for participant in topology.participants},
    )
    planned = time.perf_counter()
    verify(made)
    verified = time.perf_counter()
    output = Output()
    if as_json:
        output.write_bytes(msgspec.json.encode(made))
        return
    proved = f"proved    planned in {planned - started:.3f} s, verified in {verified - planned:.3f} s"
    output.print(f"{explain(made)}\n{proved}", highlight=False, soft_wrap=True)


def _traits(names: Collection[str], hosts: int, config: Config) -> dict[str, Traits]:
    """Of the transports; between hosts with the bandwidth that they expect of this one."""
    from ckpt_transport.transports import registry
    from ckpt_transport.update.bandwidths import bandwidths

    traits = {name: registry.load(name).traits for name in names}
    if hosts == 1:
        return traits
    expected = bandwidths(names, config)
    return {name: msgspec.structs.replace(own, bandwidth=expected[name]) for name, own in traits.items()}
