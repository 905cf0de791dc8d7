"""Prints the ratios that a benchmark hands in as a table, and keeps them as JSON and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks._results import here, page
from benchmarks._row import Row

__all__ = ["Row", "report"]


def report(rows: Sequence[Row], json_path: Path | None = None) -> None:
    """Print ``rows`` as a table; write them to ``json_path`` as a JSON list, and as a page of Markdown beside it."""
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
        json_path.with_suffix(".md").write_text(page(f"Results: {json_path.stem}", rows, here()), encoding="utf-8")
