"""Given kinds of models, when what their loaders do is replayed, then nothing tells them from ones that start so."""

from __future__ import annotations

import pytest

from tests.vllm.forked import output_of

FAMILIES = ("gpt2", "phi3", "gemma3", "gpt_oss", "granite_hybrid", "llama4")
"""Transposed, fused on disk, tied, and scaled; experts in one tensor, with biases; hybrid; experts that are transposed.
``python -m tests.vllm.recorded`` checks more."""


@pytest.mark.parametrize("family", FAMILIES)
def test_given_a_recorded_loader_when_it_is_replayed_then_it_leaves_what_a_fresh_start_loads(family: str) -> None:
    said = output_of("tests.vllm.recorded", "--family", family)
    assert f"{family}: exact; by the loader: nothing" in said
    (staged,) = (line for line in said.splitlines() if line.startswith("staged: "))
    assert staged.startswith("staged: no, vLLM: ") or staged == "staged: yes, exchanged and taken back"
