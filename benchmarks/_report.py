"""Prints the ratios that a benchmark hands in as a table, and keeps them as JSON and as a page."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks._results import here, page
from benchmarks._row import Row

__all__ = ["Row", "report"]
WIDTH = 200
"""Of a table that is printed to a file or a pipe."""


def report(rows: Iterable[Row], json_path: Path | None = None) -> None:
    """Print ``rows`` as a table when all have come; write them to ``json_path`` as a JSON list, and a page beside it.

    The files are written anew with each row, and what there is is printed also where no more can come: what was
    measured outlives an error, and an interrupt.
    """
    found: list[Row] = []
    try:
        for row in rows:
            found.append(row)
            if json_path is not None:
                _keep(found, json_path)
    finally:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(_table(found))


def _table(rows: Sequence[Row]) -> Table:
    table = Table()
    for column in ("measured", "ratio", "against", "target", "met", "figures"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    for row in rows:
        met = {True: "yes", False: "[bold red]no[/]", None: ""}[row.met]
        table.add_row(row.name, f"{row.ratio:.2f}", row.against, row.target, met, row.detail)
    return table


def _keep(rows: Sequence[Row], json_path: Path) -> None:
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    json_path.with_suffix(".md").write_text(page(f"Results: {json_path.stem}", rows, here()), encoding="utf-8")
