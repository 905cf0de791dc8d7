"""Draw the first moments of a timeline that was written with ``--trace``, as a picture for the documentation.

Usage: ``python -m benchmarks.picture TRACE PICTURE.svg``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

WIDTH, ROW, LABEL = 960, 26, 190
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")
"""Of one bucket after the other, so that neighbours differ."""
TRACKS = ((0, "fill", "source: fill"), (1, "transfer", "worker: transfer"), (1, "apply", "worker: apply"))
LANES = 4
"""Buckets that are in flight at the same time lie in different lanes."""


def draw(events: list[dict[str, Any]], begin: float, end: float) -> str:
    """SVG of the events between two times in microseconds since the first."""
    found = [event for event in events if event["ph"] == "X"]
    first = min(event["ts"] for event in found)
    scale = (WIDTH - LABEL - 10) / (end - begin)
    parts, top = [], 10
    for process, kind, label in TRACKS:
        parts.append(f'<text x="8" y="{top + ROW * LANES / 2:.0f}">{label}</text>')
        for event in found:
            name, _, number = event["name"].partition(" ")
            left, right = event["ts"] - first - begin, event["ts"] - first + event["dur"] - begin
            if event["pid"] != process or name != kind or right < 0 or left > end - begin:
                continue
            left, right, bucket = max(left, 0), min(right, end - begin), int(number)
            x, width = LABEL + left * scale, max((right - left) * scale, 1)
            y = top + bucket % LANES * ROW
            fill = COLOURS[bucket % len(COLOURS)]
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 4}" rx="2" fill="{fill}"/>')
            if width > 18:
                parts.append(f'<text x="{x + 4:.1f}" y="{y + 15}" fill="#fff">{bucket}</text>')
        top += ROW * LANES + 14
    for tick in range(0, int(end - begin) + 1, 2000):
        x = LABEL + tick * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{top}" stroke="#8886"/>')
        parts.append(f'<text x="{x + 2:.1f}" y="{top + 12}">{(begin + tick) / 1000:g} ms</text>')
    style = "font: 12px sans-serif"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 20}" style="{style}">'
        f'<rect width="{WIDTH}" height="{top + 20}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def main(
    trace: Annotated[Path, typer.Argument(help="Timeline, as --trace writes it.")],
    picture: Annotated[Path, typer.Argument(help="Where to write the SVG.")],
    begin: Annotated[float, typer.Option(help="First moment to show, in ms.")] = 100.0,
    end: Annotated[float, typer.Option(help="Last moment to show, in ms.")] = 114.0,
) -> None:
    """Draw part of a timeline."""
    events = msgspec.json.decode(trace.read_bytes())["traceEvents"]
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(draw(events, begin * 1000, end * 1000), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
