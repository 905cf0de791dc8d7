"""Planner and verifier have nothing in common but values, so neither repeats a mistake of the other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PLANNING = Path(__file__).parents[2] / "ckpt_transport" / "planning"
PREFIX = "ckpt_transport.planning"


def imports(file: Path) -> set[str]:
    """Modules of planning that a file imports, also inside functions."""
    found = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    return {node.module for node in found if node.module is not None and node.module.startswith(PREFIX)}


@pytest.mark.parametrize(("room", "allowed"), [("values", ["values"]), ("verify", ["values", "verify"])])
def test_given_a_room_of_planning_then_it_imports_values_and_itself_only(room: str, allowed: list[str]) -> None:
    prefixes = tuple(f"{PREFIX}.{name}." for name in allowed)
    files = sorted((PLANNING / room).glob("*.py"))
    assert len(files) > 4
    outside = {(file.name, module) for file in files for module in imports(file) if not module.startswith(prefixes)}
    assert not outside


def test_given_the_planner_then_no_file_of_it_imports_the_verifier() -> None:
    planner = [file for file in PLANNING.glob("*.py") if file.name != "__init__.py"]
    assert len(planner) > 8
    assert not {(file.name, module) for file in planner for module in imports(file) if ".verify" in module}
