"""``python -m examples.vllm``, or ``make demo-vllm``: a vLLM is updated, and compared with loading from disk."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from ckpt_transport_vllm.fleet import VllmFleet
from examples.shared import entry
from examples.shared.serving_scenes import Engine, play
from examples.vllm.completions import ask
from tests.support.vllm_server import Serve

VLLM = Engine("vLLM", Serve, VllmFleet, ask, "tests.support.tiny_models")


def main(
    keep: Annotated[Path | None, typer.Option(help="Keep the checkpoints and what vLLM wrote in this folder.")] = None,
) -> None:
    """Start vLLM with a tiny random model, replace its weights while it generates, and check the outcome."""
    if importlib.util.find_spec("vllm") is None:
        typer.echo(
            "vLLM is not installed here. 'make demo-vllm' installs it in .venv-vllm and runs this there.", err=True
        )
        raise typer.Exit(1)
    entry.show(functools.partial(play, VLLM), keep)


if __name__ == "__main__":
    entry.run(main)
