"""Several commands share these options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ckpt_transport.errors import ConfigError


class OptionsError(ConfigError):
    """Options do not go together, or the value of one cannot be read."""


def check_together(engine: str | None, endpoints: list[str] | None) -> None:
    """
    Raises:
        OptionsError: one of --engine and --endpoint is given without the other.
    """
    if (engine is None) != (not endpoints):
        raise OptionsError("--engine and --endpoint belong together: what runs there, and where")


def check_for_endpoints(engine: str | None, pause: str, draft: bool) -> None:
    """
    Raises:
        OptionsError: an option is given that says what to do with engines at endpoints, and there are none.
    """
    if engine is None and pause != KEEP:
        raise OptionsError("--pause is for requests at --endpoint; sinks hold their forward passes by themselves")
    if engine is None and draft:
        raise OptionsError("--draft is for engines at --endpoint; the sink of a draft model has an address of its own")


Checkpoint = Annotated[
    Path,
    typer.Option(
        help="A safetensors file, or a directory as Hugging Face lays it out.", exists=True, show_default=False
    ),
]


def as_source(checkpoint: Path) -> dict[str, Any]:
    """How a checkpoint is given to :meth:`~ckpt_transport.ParameterServer.register`."""
    return {"directory": checkpoint} if checkpoint.is_dir() else {"files": [checkpoint]}


ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with settings.", exists=True, dir_okay=False)
]
Transport = Annotated[
    str | None, typer.Option(help="A transport's name, a relay as 'gloo+shm', or 'auto'.", show_default="auto")
]
BucketBytes = Annotated[str | None, typer.Option(help="Largest bucket, as '64MiB'.", show_default="64MiB")]
RingDepth = Annotated[int | None, typer.Option(help="Slots of the pipeline's ring.", show_default="4")]
MemoryBudget = Annotated[
    str | None,
    typer.Option(help="Extra memory an update may take per participant.", show_default="half of what is free"),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(help="An engine's URL, as http://127.0.0.1:8000; may be given many times.", show_default=False),
]
Engine = Annotated[str | None, typer.Option(help="The kind of engine at the endpoints, as 'vllm'.", show_default=False)]
KEEP = "keep"
"""What becomes of requests where nothing else is asked for."""
Pause = Annotated[
    str,
    typer.Option(
        help="What becomes of requests that run at the endpoints: 'keep' freezes them and then goes on with them, "
        "'wait' lets them end first, 'abort' ends them, 'none' holds only forward passes."
    ),
]
Draft = Annotated[
    bool,
    typer.Option(
        "--draft", help="Update or roll back the draft models that the engines speculate with, and not their own."
    ),
]
Commit = Annotated[
    str | None,
    typer.Option(
        help="'in_place' writes the version over what sinks serve while requests stand still; 'staged' brings it "
        "beside that first, and keeps the version before for a rollback; 'auto' stages where every sink can, "
        "'shortest' takes what is expected to hold requests for a shorter time.",
        show_default="in_place",
    ),
]
QuantizeFor = Annotated[
    Path | None,
    typer.Option(
        help="Quantize on the way, for engines that were started from this directory, or with this config.json.",
        exists=True,
        show_default=False,
    ),
]
MappingRules = Annotated[
    str | None,
    typer.Option(
        "--mapping",
        help="TOML file with rules between the checkpoint's names, types and shapes and the engines'; or 'auto', to "
        "find them out by comparing with what the sinks expect.",
        show_default=False,
    ),
]
EndpointTimeout = Annotated[
    float | None,
    typer.Option(help="How long to wait for engines that do not answer yet, in seconds.", show_default="30"),
]
SourceRank = Annotated[
    int | None,
    typer.Option("--rank", help="Which source rank this is, from 0.", show_default="RANK, as torchrun sets it, else 0"),
]
WorldSize = Annotated[
    int | None,
    typer.Option(
        help="How many source ranks share the checkpoint. Where RANK and WORLD_SIZE are another job's: --rank 0 "
        "--world-size 1.",
        show_default="WORLD_SIZE, else 1",
    ),
]
Trace = Annotated[Path | None, typer.Option(help="Write the timeline there, for ui.perfetto.dev.")]
Verbose = Annotated[bool, typer.Option(help="Tell the whole plan, all candidates, and when each stage ran.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
