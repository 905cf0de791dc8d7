"""Nothing is decoded as a type that two threads may make known to msgspec at the same time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house.index import ROOT

PREPARES = ROOT / "ckpt_transport" / "decoding.py"
SHIPPED = ("ckpt_transport", "plugins", "adapters")


def decoded_types(function: ast.AST) -> Iterator[ast.expr]:
    """What msgspec is told to make, by calls within a function."""
    for call in ast.walk(function):
        if not isinstance(call, ast.Call) or not ast.unparse(call.func).startswith("msgspec."):
            continue
        match ast.unparse(call.func).split(".")[-1]:
            case "decode":
                yield from (keyword.value for keyword in call.keywords if keyword.arg == "type")
            case "convert":
                yield call.args[1]
            case "Decoder":
                yield from call.args[:1]


def within_functions(file: Path) -> Iterator[tuple[int, str]]:
    """Where, and what, functions of a file decode."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from ((kind.lineno, ast.unparse(kind)) for kind in decoded_types(node))


def test_given_shipped_code_then_functions_decode_prepared_types_only() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{line}: {kind}"
        for folder in SHIPPED
        for file in (ROOT / folder).rglob("*.py")
        if file != PREPARES
        for line, kind in within_functions(file)
    }
    assert len(found) > 10
    assert not {place for place in found if not place.partition(": ")[2].startswith("prepared(")}
