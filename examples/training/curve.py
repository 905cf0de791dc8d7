"""Values as a line of columns, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

COLUMNS = "▁▂▃▄▅▆▇█"


def curve(values: Sequence[float], least: float | None = None) -> str:
    """A column for each value, from the lowest to the highest.

    Args:
        values: any, in their order.
        least: what the lowest column stands for; by default the least of them.
    """
    if not values:
        return ""
    low, top = min(values) if least is None else least, max(values)
    return "".join(COLUMNS[round((value - low) / ((top - low) or 1.0) * (len(COLUMNS) - 1))] for value in values)
