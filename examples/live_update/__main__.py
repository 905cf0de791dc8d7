"""``python -m examples.live_update``, or ``make demo``: the main job on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examples.live_update.scenes import play
from examples.shared import entry


def main(
    transport: Annotated[str, typer.Option(help="'auto', 'shm', 'gloo' or any other that runs here.")] = "auto",
    trace: Annotated[Path, typer.Option(help="Where to write the timeline, for ui.perfetto.dev.")] = Path(
        "build/demo-trace.json"
    ),
    keep: Annotated[Path | None, typer.Option(help="Keep the checkpoints in this directory.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write what happened to this file, for programs.")] = None,
) -> None:
    """Serve a small transformer on two tensor-parallel workers and replace its weights while it generates."""
    entry.show(lambda display, folder: play(display, folder, transport, trace), keep, json)


if __name__ == "__main__":
    entry.run(main)
