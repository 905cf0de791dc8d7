"""Draws a timeline that was written with ``--trace``, or some moments of it, as a picture for the documentation.

Usage: ``python -m benchmarks.picture TRACE PICTURE.svg``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import inf
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

WIDTH, ROW, LABEL, CHARACTER = 960, 22, 220, 7
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")
"""Of one bar after the other, so that neighbours differ."""
LANES = 16
"""Bars at the same time lie in different lanes, of which a track has so many at most."""
TICKS = 8
"""About so many lines of the scale."""


class Bar(NamedTuple):
    """One event, in milliseconds since the first of all."""

    name: str
    begin: float
    end: float


class Track(NamedTuple):
    """What one thread of one process did, by the words in front of it."""

    label: str
    bars: Sequence[Bar]


def tracks(events: Sequence[dict[str, Any]]) -> list[Track]:
    """The threads in which something happened, in the order of processes and of their threads."""
    first = min(event["ts"] for event in events if event["ph"] == "X")
    named = {
        (event["name"], event["pid"], event.get("tid")): event["args"]["name"] for event in events if event["ph"] == "M"
    }
    bars: dict[tuple[int, int], list[Bar]] = {}
    for event in events:
        if event["ph"] == "X":
            begin = (event["ts"] - first) / 1e3
            bar = Bar(event["name"], begin, begin + event["dur"] / 1e3)
            bars.setdefault((event["pid"], event["tid"]), []).append(bar)
    return [
        Track(
            f"{named.get(('process_name', process, None), process)}: "
            f"{named.get(('thread_name', process, thread), thread)}",
            sorted(found, key=lambda bar: bar.begin),
        )
        for (process, thread), found in sorted(bars.items())
    ]


def lanes(bars: Sequence[Bar]) -> list[int]:
    """For each bar the first lane that is free when it begins; the last one where none is."""
    free: list[float] = []
    found = []
    for bar in bars:
        lane = next((lane for lane, since in enumerate(free) if since <= bar.begin), len(free))
        if lane == len(free) < LANES:
            free.append(0.0)
        lane = min(lane, LANES - 1)
        free[lane] = bar.end
        found.append(lane)
    return found


def draw(found: Sequence[Track], begin: float, end: float) -> str:
    """SVG of what these tracks have between two times in milliseconds."""
    scale = (WIDTH - LABEL - 10) / (end - begin)
    parts, top = [], 14
    for track in found:
        seen = [bar for bar in track.bars if bar.end >= begin and bar.begin <= end]
        if not seen:
            continue
        placed = lanes(seen)
        height = ROW * (1 + max(placed))
        parts.append(f'<text x="8" y="{top + height / 2 + 4:.0f}">{escape(track.label)}</text>')
        for number, (bar, lane) in enumerate(zip(seen, placed, strict=True)):
            x = LABEL + (max(bar.begin, begin) - begin) * scale
            width = max((min(bar.end, end) - max(bar.begin, begin)) * scale, 1)
            fill, y = COLOURS[number % len(COLOURS)], top + lane * ROW
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 4}" rx="2" fill="{fill}"/>')
            if text := bar.name[: int(width / CHARACTER)]:
                parts.append(f'<text x="{x + 3:.1f}" y="{y + 13}" fill="#fff">{escape(text)}</text>')
        top += height + 12
    parts += _scale(begin, end, scale, top)
    style = "font: 12px sans-serif"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 20}" style="{style}">'
        f'<rect width="{WIDTH}" height="{top + 20}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _scale(begin: float, end: float, scale: float, top: int) -> Iterator[str]:
    step = next(each for each in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, inf) if (end - begin) / each <= TICKS)
    tick = 0.0
    while tick <= end - begin:
        x = LABEL + tick * scale
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{top}" stroke="#8886"/>'
        yield f'<text x="{x + 2:.1f}" y="{top + 12}">{begin + tick:g} ms</text>'
        tick += step


def main(
    trace: Annotated[Path, typer.Argument(help="Timeline, as --trace writes it.")],
    picture: Annotated[Path, typer.Argument(help="Where to write the SVG.")],
    begin: Annotated[float, typer.Option(help="First moment to show, in ms.")] = 0.0,
    end: Annotated[float | None, typer.Option(help="Last moment to show, in ms; the end by default.")] = None,
) -> None:
    """Draw a timeline, or part of it."""
    found = tracks(msgspec.json.decode(trace.read_bytes())["traceEvents"])
    last = max(bar.end for track in found for bar in track.bars) if end is None else end
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(draw(found, begin, last), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
