"""``python -m examples.joining``, or ``make demo-join``: engines join a fleet that serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examples.joining.scenes import play
from examples.shared import entry
from tests.support.transports import over_the_network

LEAST_JOINERS = 2


def main(
    transport: Annotated[
        list[str] | None,
        typer.Option(help="Over which an engine joins; once for each engine.", show_default="all between hosts"),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write what happened to this file, for programs.")] = None,
) -> None:
    """Let engines join a fleet that serves."""
    chosen = [*(transport or over_the_network())]
    chosen += chosen[-1:] * (LEAST_JOINERS - len(chosen))
    entry.show(lambda display, folder: play(display, folder, chosen), json=json)


if __name__ == "__main__":
    entry.run(main)
