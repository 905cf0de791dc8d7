"""The timeline says how long every stage took on every rank; it is drawn in a terminal or written for Perfetto."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from ckpt_transport.planning import StageKind

_EPOCH = time.time() - time.monotonic()
GLYPHS = {StageKind.FILL: "▒", StageKind.TRANSFER: "░", StageKind.APPLY: "█"}


def now() -> float:
    """Seconds since the epoch, from a clock that never steps back in this process."""
    return _EPOCH + time.monotonic()


class StageEvent(msgspec.Struct, frozen=True, array_like=True):
    """One stage of one bucket on one rank.

    Attributes:
        start, end: seconds since the epoch.
    """

    rank: int
    kind: StageKind
    bucket: int
    start: float
    end: float


def draw(events: Sequence[StageEvent], labels: Mapping[int, str], width: int = 72) -> str:
    """Draw the timeline: a line per rank and stage kind, time from left to right."""
    if not events:
        return "(nothing happened)"
    start, end = min(event.start for event in events), max(event.end for event in events)
    scale = width / max(end - start, 1e-9)
    margin = max(len(label) for label in labels.values()) + 10 if labels else 10
    lines = []
    for rank in sorted({event.rank for event in events}):
        for kind in StageKind:
            mine = [event for event in events if event.rank == rank and event.kind is kind]
            if not mine:
                continue
            cells = [" "] * width
            for event in mine:
                first = min(int((event.start - start) * scale), width - 1)
                last = min(int((event.end - start) * scale), width - 1)
                cells[first : last + 1] = GLYPHS[kind] * (last - first + 1)
            lines.append(f"{labels.get(rank, f'rank {rank}')} {kind.name.lower()}".ljust(margin) + "".join(cells))
    lines.append(" " * margin + "0".ljust(width - 10) + f"{(end - start) * 1e3:8.1f} ms")
    return "\n".join(lines)


def write_trace(path: Path, events: Iterable[StageEvent], labels: Mapping[int, str]) -> None:
    """Write the timeline as JSON for ``chrome://tracing`` and https://ui.perfetto.dev.

    Format: the Trace Event Format's complete events (``ph`` = ``X``), times in microseconds; one process per rank, one
    thread per stage kind.
    """
    ordered = sorted(events, key=lambda event: event.start)
    zero = ordered[0].start if ordered else 0.0
    trace: list[dict[str, object]] = [
        {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": label}} for rank, label in labels.items()
    ]
    trace += [
        {"ph": "M", "name": "thread_name", "pid": rank, "tid": int(kind), "args": {"name": kind.name.lower()}}
        for rank in labels
        for kind in StageKind
    ]
    trace += [
        {
            "ph": "X",
            "name": f"{event.kind.name.lower()} {event.bucket}",
            "cat": event.kind.name.lower(),
            "pid": event.rank,
            "tid": int(event.kind),
            "ts": (event.start - zero) * 1e6,
            "dur": (event.end - event.start) * 1e6,
            "args": {"bucket": event.bucket},
        }
        for event in ordered
    ]
    path.write_bytes(msgspec.json.encode({"traceEvents": trace, "displayTimeUnit": "ms"}))
