"""Given a running vLLM, when what differs between two versions comes, then it answers as after an update of all."""

from __future__ import annotations

from tests.vllm.forked import output_of


def test_given_weights_where_kernels_read_them_then_a_delta_is_exchanged_and_taken_back() -> None:
    said = output_of("tests.vllm.deltas").splitlines()
    assert any("elements that differ from those of 'one', and taken back" in line for line in said), said


def test_given_experts_of_fp8_then_codes_and_scales_are_exchanged_where_kernels_read_them() -> None:
    said = output_of("tests.vllm.deltas", "--fp8", "--family", "moe").splitlines()
    assert any("elements that differ from those of 'one', and taken back" in line for line in said), said


def test_given_weights_that_vllm_packs_then_a_delta_is_refused_and_the_module_is_named() -> None:
    said = output_of("tests.vllm.deltas", "--packed").splitlines()
    assert any(line.startswith("refused: vLLM: vLLM processes ") for line in said), said


def test_given_thirty_steps_of_training_then_deltas_make_byte_for_byte_what_full_updates_make() -> None:
    said = output_of("tests.vllm.training").splitlines()
    assert any(line.endswith("33 were compared, and all were the same") for line in said), said
