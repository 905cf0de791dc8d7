"""``ckpt-transport update``: bring a checkpoint to running engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ckpt_transport.cli.options import BucketBytes, Checkpoint, ConfigFile, MemoryBudget, RingDepth, Transport
from ckpt_transport.cli.progress import progress
from ckpt_transport.config import Config
from ckpt_transport.planning import explain
from ckpt_transport.planning.explain import count
from ckpt_transport.session import ParameterServer
from ckpt_transport.session.report import Report


def update(
    checkpoint: Checkpoint,
    version: Annotated[str, typer.Option(help="What to call the new version, as 'step-42'.", show_default=False)],
    sink: Annotated[
        list[str] | None, typer.Option(help="A sink's address; may be given many times.", show_default="from settings")
    ] = None,
    transport: Transport = None,
    bucket_bytes: BucketBytes = None,
    ring_depth: RingDepth = None,
    memory_budget: MemoryBudget = None,
    trace: Annotated[Path | None, typer.Option(help="Write the timeline there, for ui.perfetto.dev.")] = None,
    config: ConfigFile = None,
) -> None:
    """Register a checkpoint and bring it to every sink, everywhere or nowhere.

    Under torchrun the ranks share the checkpoint, and rank 0 leads and speaks:

        torchrun --nproc-per-node 2 -m ckpt_transport update --checkpoint DIR --version step-42 --sink ADDRESS
    """
    settings = Config.load(
        config,
        sinks=tuple(sink) if sink else None,
        transport=transport,
        bucket_bytes=bucket_bytes,
        ring_depth=ring_depth,
        memory_budget=memory_budget,
        trace=str(trace) if trace else None,
    )
    with ParameterServer(settings) as server:
        console = Console(quiet=server.rank != 0)
        with progress(console, f"reading {checkpoint.name}") as read:
            if checkpoint.is_dir():
                server.register(version, directory=checkpoint, progress=read)
            else:
                server.register(version, files=[checkpoint], progress=read)
        with progress(console, f"updating to {version}") as sent:
            report = server.update(version, progress=sent)
    if report is not None:
        _print(console, report)


def _print(console: Console, report: Report) -> None:
    console.print(explain(report.plan), markup=False, highlight=False, soft_wrap=True)
    console.print(report.picture(min(console.width - 32, 100)), markup=False, highlight=False, soft_wrap=True)
    steps = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in report.phases.items())
    console.print(
        f"{report.version} is served by {count(len(report.paused), 'sink')} after {report.seconds:.3f} s ({steps})"
    )
    if report.paused:
        console.print(f"forward passes were held for at most {max(report.paused.values()) * 1e3:.0f} ms")
    for label in report.lost:
        console.print(f"[bold red]lost[/]: {label} died after all had agreed to the new version")
