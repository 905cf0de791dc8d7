"""``python -m ckpt_transport_vllm.demo``: new weights for a vLLM that serves, compared with loading them from disk."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path
from typing import Annotated

import typer

from ckpt_transport.cli.encoding import write_anything
from ckpt_transport_vllm.demo.demo import run


def main(
    keep: Annotated[Path | None, typer.Option(help="Keep the checkpoints and what vLLM wrote in this folder.")] = None,
) -> None:
    """Start vLLM with a tiny random model, replace its weights twice while it generates, and check the outcome."""
    write_anything()
    if importlib.util.find_spec("vllm") is None:
        typer.echo(
            "vLLM is not installed here. 'make demo-vllm' installs it in .venv-vllm and runs this there.", err=True
        )
        raise typer.Exit(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise typer.Exit(run(keep))


if __name__ == "__main__":
    typer.run(main)
