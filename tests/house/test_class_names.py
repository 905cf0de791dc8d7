"""A name of a class means one thing in all that ships."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ("ckpt_transport", "plugins", "adapters")
EXCEPTIONS: dict[str, str] = {}
"""Names that two modules define, and why both must have them."""


def defined() -> dict[str, list[str]]:
    """The modules that define each class at their top, private ones apart."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for folder in SHIPPED:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(str(file.relative_to(ROOT)))
    return found


def test_given_all_that_ships_then_no_class_name_has_two_meanings() -> None:
    twice = {name: files for name, files in defined().items() if len(files) > 1 and name not in EXCEPTIONS}
    assert not twice


def test_given_the_exceptions_then_each_is_still_needed() -> None:
    names = defined()
    assert all(len(names.get(name, ())) > 1 for name in EXCEPTIONS)
