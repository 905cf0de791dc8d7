"""``python -m examples.sglang``, or ``make demo-sglang``: a SGLang is updated, and compared with loading from disk."""

from __future__ import annotations

import functools
import importlib.util
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer

from ckpt_transport_sglang import SglangFleet
from examples.shared import entry
from examples.shared.clients import Answer
from examples.shared.serving_scenes import Engine, play
from tests.support.serving import ServeError
from tests.support.sglang_server import SglangServe, events

TOKENS = 24


def ask(client: httpx.Client, number: int) -> Answer:
    """Ask for a completion, token by token."""
    moments: list[float] = []
    last: list[int] = []
    for event in events(client, f"client {number}", TOKENS):
        last = event["output_ids"]
        moments.append(time.monotonic())
    if len(last) != TOKENS:
        raise ServeError(f"it ended after {len(last)} of {TOKENS} tokens")
    return Answer(tuple(moments))


SGLANG = Engine("SGLang", SglangServe, SglangFleet, ask, "tests.sglang.checkpoints")


def main(
    keep: Annotated[
        Path | None, typer.Option(help="Keep the checkpoints and what SGLang wrote in this folder.")
    ] = None,
) -> None:
    """Start SGLang with a tiny random model, replace its weights while it generates, and check the outcome."""
    if importlib.util.find_spec("sglang") is None:
        typer.echo(
            "SGLang is not installed here. 'make demo-sglang' installs it in .venv-sglang and runs this there.",
            err=True,
        )
        raise typer.Exit(1)
    entry.show(functools.partial(play, SGLANG), keep)


if __name__ == "__main__":
    entry.run(main)
