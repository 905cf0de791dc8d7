"""Given vLLMs that a program holds, when it updates them, then they are held, exact, and extended by others."""

from __future__ import annotations

from pathlib import Path

from tests.vllm.forked import output_of


def test_given_an_llm_and_an_async_llm_with_extensions_of_others_then_one_fleet_updates_both(checkpoints: Path) -> None:
    assert "with extensions of others: updated together, exactly" in output_of("tests.vllm.handles", str(checkpoints))
