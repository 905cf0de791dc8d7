"""Pictures are bars in a box that is 1,000 units wide; a template draws them as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ckpt_transport.history import Timeline
from ckpt_transport.sizes import duration

WIDTH = 1000.0
THIN = 1.5
"""No bar is narrower than that, so that none is lost."""
KINDS = {"run": "move", "hold": "hold", "apply": "hold", "commit": "hold", "wait": "wait"}
"""Which colour each phase has; the others prepare or end."""
AFTERWARDS = ("end", "unregister")
"""Phases after the commit."""


class Bar(NamedTuple):
    """A bar.

    Attributes:
        x, width: where it lies.
        kind: names its colour.
        title: what is said of it.
        held: requests are held meanwhile.
    """

    x: float
    width: float
    kind: str
    title: str
    held: bool = False


class PictureRow(NamedTuple):
    """Bars beside a name."""

    label: str
    kind: str
    bars: list[Bar]


class Tick(NamedTuple):
    """A mark of the time axis."""

    x: float
    words: str


def phases(spent: Mapping[str, float]) -> list[Bar]:
    """The phases of an update, one after the other, as wide as they took long."""
    whole, at, held = sum(spent.values()) or 1.0, 0.0, False
    drawn = []
    for phase, took in spent.items():
        held = (held or phase == "hold") and phase not in AFTERWARDS
        if took:
            title = f"{phase}: {duration(took)}" + (", while requests are held" if held else "")
            width = max(took / whole * WIDTH, THIN)
            drawn.append(Bar(min(at / whole * WIDTH, WIDTH - width), width, kind_of(phase), title, held))
        at += took
    return drawn


def kind_of(phase: str) -> str:
    """The colour of a phase: ``prepare``, ``move``, ``hold`` or ``wait``."""
    return KINDS.get(phase, "prepare")


def rows(timeline: Timeline) -> list[PictureRow]:
    """When each rank was busy with what."""
    scale = WIDTH / max(timeline.seconds, 1e-9)
    return [
        PictureRow(
            row.label,
            row.kind,
            [
                Bar(
                    min(low * scale, WIDTH - THIN),
                    max((high - low) * scale, THIN),
                    row.kind,
                    f"{row.label}, {row.kind}: {duration(low)} to {duration(high)}",
                )
                for low, high in row.spans
            ],
        )
        for row in timeline.rows
    ]


def ticks(whole: float, parts: int = 4) -> list[Tick]:
    """Marks at equal distances."""
    return [Tick(WIDTH * part / parts, duration(whole * part / parts)) for part in range(parts + 1)]
