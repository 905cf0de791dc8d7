"""The table of engines names tests that are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from docs import engines

ROOT = Path(__file__).parents[2]
ROWS = engines.rows()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.can)
def test_given_something_that_engines_can_do_then_each_test_that_is_said_to_hold_it_is_there(row: engines.Row) -> None:
    named = [told for cell in row.cells.values() for told in cell if engines.is_test(told)]
    assert named, f"no engine is tested to do this: {row.can}"
    for told in named:
        file, _, name = told.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert name in functions, f"{file} has no {name}"


def test_given_the_table_of_engines_then_each_cell_names_a_test_or_says_why_there_is_none() -> None:
    assert len(ROWS) >= 9
    empty = [(row.can, engine) for row in ROWS for engine, cell in row.cells.items() if not all(cell) or not cell]
    assert not empty
