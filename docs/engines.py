"""Reads ``engines.toml``: what each engine can do, and the tests that hold it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from docs.rendering import page, table

DATA = Path(__file__).with_name("engines.toml")
ENGINES = ("vLLM", "SGLang", "transformers", "torch")
TESTS = "tests/"


@dataclass(frozen=True)
class Row:
    """One thing that engines can do.

    Attributes:
        can: its name.
        means: what an engine does then.
        cells: for each engine the tests that hold it; else words, which say why there is none.
    """

    can: str
    means: str
    cells: Mapping[str, Sequence[str]]


def rows() -> list[Row]:
    """What ``engines.toml`` says."""
    found = tomllib.loads(DATA.read_text(encoding="utf-8"))["row"]
    return [Row(row["can"], row["means"], {engine: _cell(row[engine]) for engine in ENGINES}) for row in found]


def is_test(told: str) -> bool:
    """Whether a line of a cell names a test."""
    return told.startswith(TESTS)


def rendered() -> str:
    """The page."""
    head = ("", *ENGINES)
    lines = [(f"**{row.can}**: {row.means}", *(_in_words(row.cells[engine]) for engine in ENGINES)) for row in rows()]
    return page(
        "Engines",
        "What each engine can do, and the test that holds it. Where there is none, the cell says why.",
        table(head, lines),
    )


def _cell(told: str | Sequence[str]) -> Sequence[str]:
    return (told,) if isinstance(told, str) else tuple(told)


def _in_words(cell: Sequence[str]) -> str:
    return ", ".join(f"`{told}`" if is_test(told) else told for told in cell)
