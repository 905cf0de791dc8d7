"""Given a running vLLM, when what differs between two versions comes, then it answers as after an update of all."""

from __future__ import annotations

from tests.vllm.forked import output_of


def test_given_weights_where_kernels_read_them_then_a_delta_is_exchanged_and_taken_back() -> None:
    said = output_of("tests.vllm.deltas").splitlines()
    assert any("elements that differ from those of 'one', and taken back" in line for line in said), said


def test_given_experts_of_fp8_then_codes_and_scales_are_exchanged_where_kernels_read_them() -> None:
    said = output_of("tests.vllm.deltas", "--fp8", "block", "--family", "moe").splitlines()
    assert any("elements that differ from those of 'one', and taken back" in line for line in said), said


def test_given_layers_that_vllm_packs_then_they_come_whole_beside_the_delta_and_are_named() -> None:
    said = output_of("tests.vllm.deltas", "--packed", "").splitlines()
    (told,) = (line for line in said if line.endswith(", and taken back"))
    assert "8 modules take their tensors whole: model.layers.0." in told
    assert "(vLLM processes it when it is loaded: weight has another form for kernels)" in told


def test_given_training_and_layers_that_vllm_packs_then_deltas_make_what_full_updates_make() -> None:
    said = output_of("tests.vllm.training", "--packed", "down_proj", "--steps", "4").splitlines()
    assert any("as deltas, all of 2 modules beside each; 7 were compared" in line for line in said), said


def test_given_thirty_steps_of_training_then_deltas_make_byte_for_byte_what_full_updates_make() -> None:
    said = output_of("tests.vllm.training").splitlines()
    assert any(line.endswith("33 were compared, and all were the same") for line in said), said
