"""Draws what requests notice of an update: each forward pass of a module that is updated, in place and staged.

A module of 104 MiB answers in one process, a pass every millisecond. A trainer in another brings it a version over TCP,
as to another host: first in place, then staged. Each pass is a line, and a gap is the time for which passes were held.
Usage: ``python -m benchmarks.pause docs/pause.svg``.
"""

from __future__ import annotations

import multiprocessing
import time
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from ckpt_transport import Config, ParameterServer
from ckpt_transport_torch import attach

ROWS, COLUMNS = 26 << 10, 1 << 10
PASS_SECONDS = 0.001
COMMITS = {"in_place": "in place", "staged": "staged"}
WIDTH, LABEL, LANE = 960, 110, 64
MARGIN = 0.02
"""Seconds that are shown before the update was called, and after it returned."""


class Seen(NamedTuple):
    """One update: when it was called and returned, for how long it held passes, and when each pass ended."""

    called: float
    returned: float
    held: float
    passes: list[float]

    @property
    def longest_gap(self) -> float:
        return max(later - earlier for earlier, later in pairwise(self.passes))


def serve(pipe: Connection) -> None:
    """Answer until told to stop; say where to bring versions, and at each ``passes`` when the passes since were."""
    module = torch.nn.Embedding(ROWS, COLUMNS)
    tokens = torch.arange(8)
    passes: list[float] = []
    with attach(module) as serving, torch.inference_mode():
        pipe.send(serving.address)
        while True:
            module(tokens)
            passes.append(time.monotonic())
            if pipe.poll():
                if pipe.recv() == "stop":
                    return
                pipe.send(passes)
                passes = []
            time.sleep(PASS_SECONDS)


def measure() -> dict[str, Seen]:
    """Bring a version in each way, twice; the second time counts, when all is connected."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    address = ours.recv()
    found = {}
    for commit in COMMITS:
        with ParameterServer(Config.load(transport="gloo", commit=commit)) as server:
            for step in (1, 2):
                server.register("v", tensors={"weight": torch.full((ROWS, COLUMNS), float(step))})
                ours.send("passes")
                ours.recv()
                time.sleep(2 * MARGIN)
                called = time.monotonic()
                report = server.update("v", [address])
                returned = time.monotonic()
                assert report is not None
                time.sleep(2 * MARGIN)
                ours.send("passes")
                found[commit] = Seen(called, returned, max(report.paused.values()), ours.recv())
                server.unregister("v")
    ours.send("stop")
    process.join()
    return found


def draw(found: dict[str, Seen]) -> str:
    """SVG with a lane for each way; both begin when their update is called."""
    span = max(seen.returned - seen.called for seen in found.values()) + 2 * MARGIN
    scale = (WIDTH - LABEL - 10) / span
    parts = []
    for lane, (commit, seen) in enumerate(found.items()):
        top = 24 + lane * LANE
        left, right = (LABEL + (at - seen.called + MARGIN) * scale for at in (seen.called, seen.returned))
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="36" fill="#4c78a8" opacity=".2"/>'
        )
        parts.append(f'<text x="8" y="{top + 16}" font-weight="bold">{COMMITS[commit]}</text>')
        parts.append(f'<text x="8" y="{top + 32}">held {seen.held * 1e3:.1f} ms</text>')
        for at in seen.passes:
            x = LABEL + (at - seen.called + MARGIN) * scale
            if LABEL <= x <= WIDTH - 10:
                parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + 36}" stroke="#222"/>')
    bottom = 24 + len(found) * LANE
    size = f"{ROWS * COLUMNS * 4 >> 20} MiB"
    title = f"Each line is a forward pass of a module of {size}; a gap is the pause, and the update is shaded."
    parts.append(f'<text x="8" y="14">{title}</text>')
    for tick in range(0, int(span * 1e3), 50):
        x = LABEL + (tick / 1e3 + MARGIN) * scale
        if x < WIDTH - 40:
            parts.append(f'<text x="{x:.1f}" y="{bottom}" text-anchor="middle">{tick} ms</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 10}" style="font: 12px sans-serif">'
        f'<rect width="{WIDTH}" height="{bottom + 10}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def main(picture: Annotated[Path, typer.Argument(help="Where to write the SVG.")]) -> None:
    """Draw the pause of an update in place, and of one that is staged."""
    found = measure()
    for commit, seen in found.items():
        print(f"{COMMITS[commit]}: held {seen.held * 1e3:.1f} ms, longest gap {seen.longest_gap * 1e3:.1f} ms")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(draw(found), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
