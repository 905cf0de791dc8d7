"""Given a vLLM that serves FP8 in some way, when it is updated, then it is what a fresh one would be; see fp8_modes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.fp8_modes import Case, run

CASES = [
    ("block", "qwen3", 1),
    ("block", "moe", 1),
    ("block", "deepseek", 1),
    pytest.param(*("block", "qwen3", 2), marks=pytest.mark.alone),
    ("tensor", "moe", 1),
    ("static", "qwen3", 1),
    ("channel", "moe", 1),
    ("online tensor", "qwen3", 1),
    pytest.param(*("online tensor", "qwen3", 2), marks=pytest.mark.alone),
    ("online block", "moe", 1),
    ("online channel", "qwen3", 1),
]


@pytest.mark.parametrize(("mode", "family", "ranks"), CASES, ids=str)
def test_given_a_server_of_fp8_then_updates_refusals_and_repairs_are_as_promised(
    tmp_path: Path, mode: str, family: str, ranks: int
) -> None:
    transport = "shm" if family == "qwen3" else "gloo"
    assert "updates" in run(Case(tmp_path, mode, family, ranks), transport)


def test_given_a_server_of_fp8_that_warms_up_then_its_first_update_needs_no_loader(tmp_path: Path) -> None:
    assert "updates" in run(Case(tmp_path, "block", "moe", 1, warmed=True), "gloo")


@pytest.mark.parametrize(("mode", "family"), [("block", "moe"), ("online tensor", "qwen3")], ids=str)
def test_given_engines_that_start_without_weights_then_they_are_brought_to_the_same(
    tmp_path: Path, mode: str, family: str
) -> None:
    seen = run(Case(tmp_path, mode, family, 1, bare=True), "shm")
    assert "updates" in seen
    assert " 0 of them replayed" not in seen
