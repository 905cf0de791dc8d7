"""A vLLM that serves records its loader, so that the first update need not."""

from __future__ import annotations

import pytest

from tests.vllm.forked import output_of


@pytest.mark.parametrize("family", ["moe"])
def test_given_a_model_that_serves_then_its_loader_is_recorded_as_when_it_stands_still(family: str) -> None:
    assert f"{family}: recorded while it served" in output_of("tests.vllm.warmed", "--family", family)
