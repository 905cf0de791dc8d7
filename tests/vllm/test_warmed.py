"""A vLLM that serves finds out what its first update would find out, so that the first is as later ones."""

from __future__ import annotations

import pytest

from tests.vllm.forked import output_of


@pytest.mark.parametrize(("family", "how"), [("moe", "in place"), ("qwen3", "staged")])
def test_given_a_model_that_serves_then_it_finds_out_as_much_as_when_it_stands_still(family: str, how: str) -> None:
    """On CPUs vLLM has a module in each mixture that is processed together with it."""
    said = output_of("tests.vllm.warmed", "--family", family)
    assert f"{family}: recorded while it served, first update {how}, " in said
