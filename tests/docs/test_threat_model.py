"""What the threat model says to hold a claim is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "threat-model.md"
HOLDER = re.compile(r"`((?:ckpt_transport|plugins|adapters|tests)/[\w/]+\.py)(?:::(\w+))?`")


def test_given_the_threat_model_then_all_that_holds_a_claim_is_there() -> None:
    held_by = HOLDER.findall(PAGE.read_text(encoding="utf-8"))
    assert len(held_by) > 25
    for file, test in held_by:
        assert (ROOT / file).is_file(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {test}"


def test_given_the_threat_model_then_each_row_says_what_holds_it() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    claims = [row for row in rows if not row.startswith(("| --- ", "| socket ", "| file ", "| memory "))]
    assert claims
    assert all(HOLDER.search(row.rsplit("|", 2)[1]) for row in claims)
