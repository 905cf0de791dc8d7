"""Runs the benchmarks that need neither GPU nor vLLM, one after the other, and writes ``build/bench.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import (
    control,
    control_scale,
    p2p_transports,
    planning,
    recorded_apply,
    registration,
    update_gloo,
    update_shm,
    wall_clock,
)
from benchmarks._report import report

BENCHMARKS = (
    planning,
    control,
    control_scale,
    registration,
    recorded_apply,
    wall_clock,
    update_shm,
    update_gloo,
    p2p_transports,
)


def main(json: Annotated[Path, typer.Option(help="Write the rows to this file.")] = Path("build/bench.json")) -> None:
    """Measure everything, print one table, and write it as JSON."""
    console = Console(stderr=True)
    rows = []
    for benchmark in BENCHMARKS:
        console.print(f"{benchmark.__name__} ...")
        rows += benchmark.measure()
    report(rows, json)


if __name__ == "__main__":
    typer.run(main)
