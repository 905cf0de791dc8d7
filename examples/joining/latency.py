"""A picture of how long requests took, over time, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from examples.shared.clients import Served
from examples.shared.display import milliseconds

HEIGHT = 5
EIGHTHS = " ▁▂▃▄▅▆▇█"


def picture(served: Sequence[Served], spans: Sequence[tuple[float, float]], width: int) -> str:
    """Columns of the median latency of the requests that ended in each slice of time.

    Args:
        served: the requests.
        spans: times to mark below, each by its number.
        width: in characters.
    """
    if not served:
        return "(no requests)"
    start, end = min(one.start for one in served), max(one.end for one in served)
    scale = width / max(end - start, 1e-9)
    columns: list[list[float]] = [[] for _ in range(width)]
    for one in served:
        columns[min(int((one.end - start) * scale), width - 1)].append(one.seconds)
    values = [median(column) if column else 0.0 for column in columns]
    top = max(values)
    margin = len(milliseconds(top)) + 1
    lines = []
    for row in reversed(range(HEIGHT)):
        label = milliseconds(top) if row == HEIGHT - 1 else milliseconds(0) if row == 0 else ""
        eighths = (min(max(round((value / top * HEIGHT - row) * 8), 0), 8) for value in values)
        lines.append(f"{label:>{margin}}│" + "".join(EIGHTHS[n] for n in eighths))
    marks = [" "] * width
    for number, (first, last) in enumerate(spans, start=1):
        left, right = (min(max(int((moment - start) * scale), 0), width - 1) for moment in (first, last))
        marks[left : right + 1] = "─" * (right - left + 1)
        marks[left] = str(number % 10)
    lines.append(" " * margin + "└" + "".join(marks))
    return "\n".join(lines)
