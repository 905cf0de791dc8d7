"""A vLLM that serves rehearses its first update: what that finds, and what becomes of what it cannot find."""

from __future__ import annotations

import pytest

from tests.vllm.forked import output_of


def test_given_rehearsals_of_all_kinds_then_the_first_update_does_what_they_have_left() -> None:
    said = output_of("tests.vllm.rehearsed")
    assert "too little memory: compared at the first update" in said
    assert "an update that comes meanwhile: compares the rest" in said
    assert "every replay is compared: nothing is rehearsed" in said
    assert "processing that changes what is shared: left to the first update" in said
    assert "processing whose kernel keeps a parameter: left to the first update" in said
    assert "memory of a rehearsal: free at its end" in said
    assert "a replay that differs: left to the loader" in said


@pytest.mark.alone
def test_given_two_ranks_then_each_rehearses_and_their_first_update_calls_no_loader() -> None:
    assert "qwen3: 2 ranks: replayed in" in output_of("tests.vllm.rehearsed", "--ranks")
