"""``python -m examples.training``, or ``make demo-train``: a trainer improves a model that answers meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examples.shared import entry
from examples.training.scenes import play


def main(
    steps: Annotated[int, typer.Option(help="Of the training.", min=1)] = 20,
    rate: Annotated[float, typer.Option(help="At which it learns: the smaller, the fewer bytes a step moves.")] = 3e-6,
    json: Annotated[Path | None, typer.Option("--json", help="Write what happened to this file, for programs.")] = None,
) -> None:
    """Train a small model by FSDP2 on two ranks, and serve every step of it as it is trained."""
    entry.show(lambda display, folder: play(display, folder, steps, rate), json=json)


if __name__ == "__main__":
    entry.run(main)
