"""``ckpt-transport join`` brings a newly started engine to what others hold, or to what the fleet beside it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckpt_transport.cli.options import (
    KEEP,
    AsJson,
    BucketBytes,
    ConfigFile,
    Endpoints,
    EndpointTimeout,
    MemoryBudget,
    OptionsError,
    QuantizeFor,
    RingDepth,
    SourceRank,
    Trace,
    Transport,
    Verbose,
    WorldSize,
)


def join(
    endpoint: Endpoints = None,
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Addresses of sinks that join, as of --sink.", show_default=False)
    ] = None,
    sink: Annotated[
        list[str] | None,
        typer.Option(help="The address of a sink that joins; may be given many times.", show_default=False),
    ] = None,
    metas: Annotated[
        list[Path] | None,
        typer.Option(
            help="Where holders of the version are, as 'ckpt-transport serve' has saved it; may be given many times.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="The kind of engine at the endpoints.")] = "vllm",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Without holders: where the weights are.", exists=True, show_default="that of the last update"
        ),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="What the version is called.", show_default="that of holders, or the last update")
    ] = None,
    quantize_for: QuantizeFor = None,
    transport: Transport = None,
    bucket_bytes: BucketBytes = None,
    ring_depth: RingDepth = None,
    memory_budget: MemoryBudget = None,
    endpoint_timeout: EndpointTimeout = None,
    rank: SourceRank = None,
    world_size: WorldSize = None,
    trace: Trace = None,
    config: ConfigFile = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Bring newly started engines to the version that the fleet serves. The others are not touched.

    Start an engine without weights, which is quick, and then join. Those who hold the version send it, all at once:

        VLLM_SERVER_DEV_MODE=1 vllm serve DIR --load-format dummy ...

        ckpt-transport join --metas step-42.json --endpoint http://127.0.0.1:8001

    A holder or an engine that dies on the way is named, and the others go on.

    Without --metas the weights are read from --checkpoint, and without that from what 'ckpt-transport update --engine'
    brought last from this machine, quantized as it was then. That the fleet still serves it, and that the checkpoint
    has not changed since, is checked first.
    """
    from ckpt_transport.cli.bringing import INCOMPLETE, Driven, bring, run
    from ckpt_transport.cli.last_update import last_update
    from ckpt_transport.cli.outcome import Json, VerboseWords, Words
    from ckpt_transport.cli.output import after_commit
    from ckpt_transport.config import Config
    from ckpt_transport.service import Joiner

    sinks = [*(addresses or ()), *(sink or ())]
    settings = Config.load(
        config,
        sinks=sinks or None,
        transport=transport,
        bucket_bytes=bucket_bytes,
        ring_depth=ring_depth,
        memory_budget=memory_budget,
        endpoint_timeout=endpoint_timeout,
        trace=trace,
    )
    if bool(sinks) == bool(endpoint):
        raise OptionsError("give one of both: --endpoint for engines that are driven there, or --sink with --metas")
    if metas and checkpoint is not None:
        raise OptionsError("the weights come from the holders in --metas, or from --checkpoint, not from both")
    driven = Driven(engine, tuple(endpoint), KEEP, draft=False) if endpoint else None
    tells = Json if as_json else VerboseWords if verbose else Words
    if metas:
        joiner = Joiner(metas, settings)
        teller = tells()
        problems = run(settings, joiner, version or joiner.version, driven, teller)
        with after_commit("its report cannot be shown"):
            teller.end(problems)
        if problems:
            raise typer.Exit(INCOMPLETE)
        return
    if driven is None:
        raise OptionsError("say where holders are with --metas; without holders use 'ckpt-transport update --sink'")
    if (checkpoint is None) != (version is None):
        raise OptionsError("give both --checkpoint and --version, or neither")
    if quantize_for is not None and checkpoint is None:
        raise OptionsError("--quantize-for belongs to --checkpoint; the last update is joined as it was")
    if checkpoint is None or version is None:
        known = last_update(engine, settings)
        checkpoint, version = Path(known.checkpoint), known.version
        quantize_for = Path(known.quantized_for) if known.quantized_for else None
    bring(settings, checkpoint, version, driven, quantize_for, rank=rank, world_size=world_size, tells=tells)
