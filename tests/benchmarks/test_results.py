"""Results are kept as JSON and as a page, and the two say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks._report import Row, report
from benchmarks._results import table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ROWS = sorted(path for path in RESULTS.glob("*.json") if not path.name.endswith(".trace.json"))


def test_given_rows_when_they_are_reported_then_a_page_says_what_was_measured_where(tmp_path: Path) -> None:
    rows = [Row("slow", 0.5, "a copy", ">=0.9", "2 s"), Row("fast", 1.0, "a copy", ">=0.9", "1 s")]
    report(rows, tmp_path / "figures.json")
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert [row["ratio"] for row in kept] == [0.5, 1.0]
    page = (tmp_path / "figures.md").read_text()
    assert page.startswith("# Results: figures\n")
    assert "* command: `python" in page
    assert " cores" in page
    assert "torch " in page
    assert "| slow | **0.50** | a copy | >=0.9 | 2 s |\n| fast | 1.00 | a copy | >=0.9 | 1 s |\n" in page


@pytest.mark.parametrize("kept", ROWS, ids=lambda path: path.stem)
def test_given_results_that_are_kept_then_their_page_has_the_same_rows(kept: Path) -> None:
    rows = [Row(**row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    assert rows
    assert table(rows) in kept.with_suffix(".md").read_text(encoding="utf-8")
