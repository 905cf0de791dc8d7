"""A timeline of thousands of stages becomes a few rows of spans."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ckpt_transport.execution import StageEvent
from ckpt_transport.history.entries import StageRow, Timeline
from ckpt_transport.planning import StageKind

RANKS = 16
"""Of more, those with the lowest numbers are shown: sources come first."""
PARTS = 64
"""Gaps that are shorter than such a part of the whole are closed, so a row has at most one span more."""


def timeline_of(update: str, at: float, events: Sequence[StageEvent], labels: Mapping[int, str]) -> Timeline | None:
    """Make the timeline of an update; None where no stage has ended.

    Args:
        update, at: as those of :class:`Timeline`.
        events: every stage on every rank.
        labels: what people call each rank.
    """
    if not events:
        return None
    start, end = min(event.start for event in events), max(event.end for event in events)
    busy: defaultdict[tuple[int, StageKind], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event.rank < RANKS:
            busy[event.rank, event.kind].append((event.start - start, event.end - start))
    rows = tuple(
        StageRow(labels.get(rank, f"rank {rank}"), kind.name.lower(), _joined(spans, (end - start) / PARTS))
        for (rank, kind), spans in sorted(busy.items())
    )
    return Timeline(at=at, update=update, seconds=end - start, rows=rows, more=max(len(labels) - RANKS, 0))


def _joined(spans: Iterable[tuple[float, float]], gap: float) -> tuple[tuple[float, float], ...]:
    """Join spans that overlap, or that lie closer together than ``gap``."""
    joined: list[tuple[float, float]] = []
    for low, high in sorted(spans):
        if joined and low - joined[-1][1] < gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return tuple((round(low, 6), round(high, 6)) for low, high in joined)
