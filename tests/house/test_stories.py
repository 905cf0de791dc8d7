"""Tests tell stories."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
STORY = re.compile(r"test_given_\w+_then_\w+")


def test_given_the_tests_then_each_is_named_as_a_story() -> None:
    names = [
        f"{file.relative_to(TESTS)}: {node.name}"
        for file in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert names
    assert not [name for name in names if not STORY.fullmatch(name.partition(": ")[2])]
