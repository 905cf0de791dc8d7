"""The rooms of the core stand on one another in one order: no import goes upwards, and none goes in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "ckpt_transport"
LAYERS = (
    ("errors",),
    ("reasons",),
    ("events",),
    ("logs", "metrics"),
    ("decoding", "dtypes", "paths", "quiet_imports", "release", "sizes"),
    ("private_file", "tracing"),
    ("memory",),
    ("transports",),
    ("config", "rates"),
    ("control", "planning"),
    ("deltas",),
    ("checkpoint", "engine", "execution"),
    ("history",),
    ("replay", "simulator", "update"),
    ("service",),
    ("dashboard", "diagnosis"),
    ("cli",),
    ("__main__", "spi", "testing"),
)
"""From the bottom to the top. Rooms of one layer do not know each other."""


def imports(file: Path) -> Iterator[str]:
    """Modules that a file names in its imports, also in those inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "ckpt_transport":
                yield from (f"ckpt_transport.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms_of(names: Iterator[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("ckpt_transport.")}


def rooms() -> dict[str, set[str]]:
    """Each room, and the other rooms that it imports."""
    found: dict[str, set[str]] = {}
    for file in CORE.rglob("*.py"):
        room = file.relative_to(CORE).parts[0].removesuffix(".py")
        if room != "__init__":
            found.setdefault(room, set()).update(rooms_of(imports(file)) - {room})
    return found


def test_given_the_core_then_every_room_has_a_layer() -> None:
    assert set(rooms()) == {room for layer in LAYERS for room in layer}


@pytest.mark.parametrize("room", [room for layer in LAYERS for room in layer])
def test_given_a_room_then_it_imports_only_rooms_below_it(room: str) -> None:
    below: set[str] = set()
    for layer in LAYERS:
        if room in layer:
            break
        below.update(layer)
    assert rooms()[room] - below == set()


@pytest.mark.parametrize("kind", ["plugins", "adapters"])
def test_given_plugins_and_adapters_then_the_core_imports_none_of_them(kind: str) -> None:
    outside = {package.name for package in (ROOT / kind).iterdir() if package.is_dir()}
    named = {name.split(".")[0] for file in CORE.rglob("*.py") for name in imports(file)}
    assert outside
    assert not named & outside
