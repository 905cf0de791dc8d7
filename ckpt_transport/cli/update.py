"""``ckpt-transport update`` brings a checkpoint to running engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckpt_transport.cli.methods import UpdateMethod, parse_ranks
from ckpt_transport.cli.options import (
    KEEP,
    AsJson,
    BucketBytes,
    Checkpoint,
    Commit,
    ConfigFile,
    Draft,
    Endpoints,
    EndpointTimeout,
    Engine,
    MappingRules,
    MemoryBudget,
    OptionsError,
    Pause,
    QuantizeFor,
    RingDepth,
    SourceRank,
    Trace,
    Transport,
    Verbose,
    WorldSize,
    check_for_endpoints,
    check_together,
)


def update(
    checkpoint: Checkpoint,
    version: Annotated[str, typer.Option(help="What to call the new version, as 'step-42'.", show_default=False)],
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Addresses of sinks, as of --sink.", show_default="from settings")
    ] = None,
    sink: Annotated[
        list[str] | None, typer.Option(help="A sink's address; may be given many times.", show_default="from settings")
    ] = None,
    engine: Engine = None,
    endpoint: Endpoints = None,
    pause: Pause = KEEP,
    draft: Draft = False,
    mapping: MappingRules = None,
    quantize_for: QuantizeFor = None,
    update_method: Annotated[
        UpdateMethod,
        typer.Option(
            help="'broadcast': everybody, everywhere or nowhere. 'p2p': those of --ranks, else all; who dies on the "
            "way is left out. 'all': those of --ranks by p2p, after a broadcast to the others."
        ),
    ] = UpdateMethod.BROADCAST,
    ranks: Annotated[
        str | None,
        typer.Option(
            help="Which of the sinks to update, counted from 0, as '0,2' or '4-7'; with p2p or all.", show_default="all"
        ),
    ] = None,
    transport: Transport = None,
    bucket_bytes: BucketBytes = None,
    ring_depth: RingDepth = None,
    memory_budget: MemoryBudget = None,
    commit: Commit = None,
    endpoint_timeout: EndpointTimeout = None,
    rank: SourceRank = None,
    world_size: WorldSize = None,
    trace: Trace = None,
    config: ConfigFile = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Register a checkpoint and bring it to every sink, everywhere or nowhere.

    Sinks are given by address, or found in running engines by their endpoints. Engines are paused, updated in one
    plan, and resumed. With --commit staged or auto they serve while the version comes, and can be rolled back:

        ckpt-transport update --checkpoint DIR --version step-42 --engine vllm --endpoint http://127.0.0.1:8000

    Under torchrun the ranks share the checkpoint, and rank 0 leads and speaks:

        torchrun --nproc-per-node 2 -m ckpt_transport update --checkpoint DIR --version step-42 --sink ADDRESS
    """
    from ckpt_transport.checkpoint.mapping import Mapping
    from ckpt_transport.cli.bringing import Driven, bring
    from ckpt_transport.cli.outcome import Json, VerboseWords, Words
    from ckpt_transport.config import Config
    from ckpt_transport.service.auto import AUTO, AnyMapping

    settings = Config.load(
        config,
        sinks=[*(addresses or ()), *(sink or ())] or None,
        transport=transport,
        bucket_bytes=bucket_bytes,
        ring_depth=ring_depth,
        memory_budget=memory_budget,
        commit=commit,
        endpoint_timeout=endpoint_timeout,
        trace=trace,
    )
    check_together(engine, endpoint)
    if engine is not None and (addresses or sink):
        raise OptionsError("give addresses of sinks, or --engine and --endpoint, not both")
    check_for_endpoints(engine, pause, draft)
    if ranks is not None and update_method is UpdateMethod.BROADCAST:
        raise OptionsError("a broadcast is to all sinks; with --ranks choose --update-method p2p, or all")
    if ranks is not None and engine is not None:
        raise OptionsError("--ranks counts sinks; of engines choose some by their --endpoint")
    driven = None if engine is None else Driven(engine, tuple(endpoint or ()), pause, draft)
    some = None if ranks is None else parse_ranks(ranks)
    rules: AnyMapping = None
    if mapping is not None:
        rules = AUTO if mapping == AUTO else Mapping.load(Path(mapping))
    tells = Json if as_json else VerboseWords if verbose else Words
    bring(settings, checkpoint, version, driven, quantize_for, update_method, some, rank, world_size, rules, tells)
