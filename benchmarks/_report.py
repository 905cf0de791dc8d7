"""What every benchmark hands in: ratios, each with the target it is held against."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


class Row(msgspec.Struct, frozen=True):
    """One measured ratio.

    Attributes:
        name: what was measured.
        ratio: of its figure to that of ``against``; no unit.
        against: what was measured next to it, in the same run.
        target: what the ratio should be, as ``>=0.7``; empty where there is no target.
        detail: the figures behind it, with units.
    """

    name: str
    ratio: float
    against: str
    target: str
    detail: str

    @property
    def met(self) -> bool | None:
        """Whether the ratio meets its target; None without one."""
        for sign, compare in _COMPARISONS.items():
            if self.target.startswith(sign):
                return compare(self.ratio, float(self.target.removeprefix(sign)))
        return None


def report(rows: Sequence[Row], json_path: Path | None = None) -> None:
    """Print ``rows`` as a table, and write them to ``json_path`` as a JSON list of objects."""
    table = Table()
    for column in ("measured", "ratio", "against", "target", "met", "figures"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    for row in rows:
        met = {True: "yes", False: "[bold red]no[/]", None: ""}[row.met]
        table.add_row(row.name, f"{row.ratio:.2f}", row.against, row.target, met, row.detail)
    Console().print(table)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(list(rows))) + b"\n")
