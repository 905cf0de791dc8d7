"""What ships is in files that are read in one go."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ("ckpt_transport", "plugins", "adapters")
MOST_LINES = 400


def test_given_all_that_ships_then_no_file_is_longer_than_can_be_read_in_one_go() -> None:
    files = [file for folder in SHIPPED for file in sorted((ROOT / folder).rglob("*.py"))]
    lines = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert lines
    assert not {file: count for file, count in lines.items() if count > MOST_LINES}
