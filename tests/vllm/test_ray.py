"""Given vLLMs in Ray actors, when a fleet is given their handles, then they are held and updated as others are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.forked import output_of


def test_given_actors_around_an_llm_and_an_async_llm_then_one_fleet_updates_both(checkpoints: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    assert "in actors: updated together, exactly" in output_of("tests.vllm.ray_actors", str(checkpoints))
