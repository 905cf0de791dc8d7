"""Given weights and a target that serves FP8, when a version is made of them, then its bytes are the reference's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.checkpoint import Loan, Store
from ckpt_transport.errors import CheckpointError, PlanMismatchError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import TensorSpec
from ckpt_transport_fp8 import Target, quantized
from ckpt_transport_fp8.config import parse
from ckpt_transport_fp8.scheme import Granularity, Scheme
from tests.fp8_reference import VALUES, error, nearest, quantize

NAME = "model.layers.0.mlp.up_proj.weight"
SCHEMES = {
    "block": Scheme(Granularity.BLOCK, "weight_scale_inv"),
    "ue8m0": Scheme(Granularity.BLOCK, "weight_scale_inv", powers_of_two=True),
    "small blocks": Scheme(Granularity.BLOCK, "weight_scale_inv", (16, 48)),
    "channel": Scheme(Granularity.CHANNEL, "weight_scale"),
    "tensor": Scheme(Granularity.TENSOR, "weight_scale"),
}
CPU = torch.device("cpu")
sizes = st.one_of(st.integers(1, 20), st.integers(120, 300))


def config(scheme: Scheme) -> dict[str, Any]:
    """A ``config.json`` that asks for the scheme, and leaves ``down_proj`` as it is."""
    if scheme.granularity is Granularity.CHANNEL:
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": {"dynamic": True}}
        ignore = ["lm_head", "re:.*down_proj"]
        found: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": group},
            "ignore": ignore,
        }
    else:
        found = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["down_proj"]}
        if scheme.granularity is Granularity.BLOCK:
            found["weight_block_size"] = list(scheme.block)
            found["scale_fmt"] = "ue8m0" if scheme.powers_of_two else None
    return {"quantization_config": found}


def target(scheme: Scheme) -> Target:
    return Target("target", parse(config(scheme), "config.json"))


def bytes_of(loan: Loan, cuts: list[int] | None = None) -> dict[str, torch.Tensor]:
    """All of a loan, filled in buckets that end at ``cuts``, as tensors of bytes."""
    assert loan.backing is not None
    whole = torch.full((loan.backing.nbytes,), 0xA5, dtype=torch.uint8)
    edges = sorted({0, *(cuts or ()), loan.backing.nbytes})
    for first, last in itertools.pairwise(edges):
        loan.backing.fill(whole[first:last], first)
    return {place.spec.name: whole[place.offset : place.offset + place.nbytes] for place in loan.tensors}


def weight(rows: int, columns: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random numbers of very different magnitude from row to row."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randint(-20, 8, (rows, 1), generator=generator).float().exp2()
    return (torch.randn(rows, columns, generator=generator) * spread).to(dtype)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@given(rows=sizes, columns=sizes, seed=st.integers(0, 100), data=st.data())
def test_given_buckets_that_end_anywhere_then_every_element_and_scale_is_the_reference(
    scheme: Scheme, dtype: torch.dtype, rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    source = weight(rows, columns, dtype, seed)
    loan = quantized({NAME: source}, target(scheme), CPU)
    assert loan.backing is not None
    cuts = data.draw(st.lists(st.integers(0, loan.backing.nbytes // 256).map(lambda n: 256 * n), max_size=4))
    found = bytes_of(loan, cuts)
    compressed = scheme.granularity is Granularity.CHANNEL
    codes, scales = quantize(source, scheme, dtype if compressed else torch.float32)
    assert torch.equal(found[NAME].view(codes.shape), codes)
    assert torch.equal(found[scheme.scale_name(NAME)], scales.view(-1).view(torch.uint8))


def test_given_values_between_two_codes_then_every_code_is_reached_and_ties_go_to_even() -> None:
    middles = (torch.from_numpy(VALUES)[1:] + torch.from_numpy(VALUES)[:-1]) / 2
    values = torch.cat([torch.from_numpy(VALUES), middles, middles.nextafter(torch.tensor(1e9).double())]).float()
    source = torch.cat([values, -values])[None]
    source[0, 0] = 448
    found = bytes_of(quantized({NAME: source}, target(SCHEMES["tensor"]), CPU))
    assert found[SCHEMES["tensor"].scale_name(NAME)].view(torch.float32).item() == 1.0
    assert torch.equal(found[NAME], torch.from_numpy(nearest(source[0].double().numpy())))
    assert len(set(found[NAME].tolist())) == 254


def test_given_a_quantized_version_then_manifest_names_and_digest_say_what_was_quantized_and_how() -> None:
    tensors = {
        "model.embed_tokens.weight": torch.randn(32, 16).bfloat16(),
        NAME: torch.randn(130, 16).bfloat16(),
        "model.layers.0.mlp.down_proj.weight": torch.randn(16, 130).bfloat16(),
        "model.norm.weight": torch.randn(16),
    }
    with Store(threads=1, pool=MemoryKind.PRIVATE) as store:
        lent = store.lend("v1", quantized(tensors, target(SCHEMES["block"]), CPU))
        assert [place.spec for place in lent.manifest.tensors] == [
            TensorSpec("model.embed_tokens.weight", "BF16", (32, 16)),
            TensorSpec(NAME, "F8_E4M3", (130, 16)),
            TensorSpec(f"{NAME}_scale_inv", "F32", (2, 1)),
            TensorSpec("model.layers.0.mlp.down_proj.weight", "BF16", (16, 130)),
            TensorSpec("model.norm.weight", "F32", (16,)),
        ]
        (conversion,) = lent.manifest.conversions
        assert conversion.tensors == (NAME, f"{NAME}_scale_inv")
        assert "block of 128 x 128" in conversion.how
        assert "BF16" in conversion.how
        registered = store.register("bf16", tensors=tensors)
        again = quantized(registered, target(SCHEMES["block"]), CPU)
        assert list(again.tensors) == list(lent.manifest.tensors)
        (backing,) = lent.extents
        slot = torch.zeros(backing.nbytes, dtype=torch.uint8)
        backing.fill(slot, 0)
        other = torch.zeros_like(slot)
        assert again.backing is not None
        again.backing.fill(other, 0)
        assert torch.equal(slot, other)


def like(specs: Mapping[str, TensorSpec]) -> Target:
    return Target("target", parse(config(SCHEMES["block"]), "config.json"), specs)


def specs(*each: TensorSpec) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in each}


FP8 = TensorSpec(NAME, "F8_E4M3", (130, 16))
SCALE = TensorSpec(f"{NAME}_scale_inv", "F32", (2, 1))


def test_given_a_target_with_files_then_they_decide_and_other_types_are_rounded_to_its_own() -> None:
    norm, gate = TensorSpec("norm.weight", "BF16", (5,)), TensorSpec("mlp.gate.weight", "BF16", (4, 16))
    source = {NAME: torch.randn(130, 16), "norm.weight": torch.randn(5), "mlp.gate.weight": torch.randn(4, 16)}
    found = bytes_of(quantized(source, like(specs(FP8, SCALE, norm, gate)), CPU))
    codes, scales = quantize(source[NAME], SCHEMES["block"], torch.float32)
    assert torch.equal(found[NAME].view(codes.shape), codes)
    assert torch.equal(found[SCALE.name].view(torch.float32).view(2, 1), scales)
    for name in ("norm.weight", "mlp.gate.weight"):
        assert torch.equal(found[name].view(torch.bfloat16).view(source[name].shape), source[name].bfloat16())


def test_given_a_weight_too_large_for_the_targets_own_type_then_it_is_refused_by_name() -> None:
    norm = like(specs(TensorSpec("norm.weight", "F16", (3,))))
    source = torch.tensor([65519.0, -65519.0, 1e-9])
    assert bytes_of(quantized({"norm.weight": source}, norm, CPU))["norm.weight"].view(torch.float16)[0] == 65504
    source[1] = -65520
    with pytest.raises(CheckpointError, match=r"norm\.weight .* not finite in F16"):
        quantized({"norm.weight": source}, norm, CPU)


def test_given_tensors_that_are_fp8_already_then_they_travel_as_they_are() -> None:
    source = {NAME: torch.randn(130, 16).to(torch.float8_e4m3fn), SCALE.name: torch.rand(2, 1)}
    loan = quantized(source, like(specs(FP8, SCALE)), CPU)
    assert loan.conversions == []
    assert torch.equal(bytes_of(loan)[NAME], source[NAME].view(torch.uint8).view(-1))


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_given_empty_weights_then_they_have_scales_all_the_same(scheme: Scheme, shape: tuple[int, int]) -> None:
    loan = quantized({NAME: torch.empty(shape), "norm.weight": torch.ones(3)}, target(scheme), CPU)
    assert [place.spec.shape for place in loan.tensors] == [shape, scheme.scale_shapes(shape)[0], (3,)]
    assert len(bytes_of(loan)) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_given_nan_or_infinity_then_it_is_refused_with_the_tensors_name(scheme: Scheme, value: float) -> None:
    source = torch.randn(200, 150).bfloat16()
    source[199, 149] = value
    with pytest.raises(CheckpointError, match=rf"{NAME} .* NaN or infinity"):
        quantized({NAME: source}, target(scheme), CPU)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (specs(FP8), rf"target lacks {NAME}_scale_inv, which should be of shape \[2, 1\]"),
        (specs(FP8, TensorSpec(SCALE.name, "F32", (1, 1))), r"has .*scale_inv \(F32 \[1, 1\]\).* of shape \[2, 1\]"),
        (specs(SCALE), rf"tensor {NAME} .* is not in target"),
        (specs(TensorSpec(NAME, "F8_E4M3", (131, 16)), SCALE), r"is F8_E4M3 \[131, 16\] in target"),
        (specs(TensorSpec(NAME, "I8", (130, 16)), SCALE), "does not say how"),
        (
            specs(FP8, SCALE, TensorSpec("model.layers.0.mlp.up_proj.input_scale", "F32", ())),
            r"needs model\.layers\.0\.mlp\.up_proj\.input_scale, which cannot be computed",
        ),
    ],
)
def test_given_what_the_target_has_otherwise_then_it_is_refused_by_name(
    known: dict[str, TensorSpec], said: str
) -> None:
    with pytest.raises(PlanMismatchError, match=said):
        quantized({NAME: torch.randn(130, 16).bfloat16()}, like(known), CPU)


def test_given_scales_that_would_come_twice_then_they_are_refused() -> None:
    source = {NAME: torch.randn(130, 16).bfloat16(), SCALE.name: torch.rand(2, 1)}
    with pytest.raises(PlanMismatchError, match="comes with"):
        quantized(source, like(specs(FP8, SCALE)), CPU)


def test_given_tensors_that_are_not_contiguous_then_they_are_refused() -> None:
    with pytest.raises(CheckpointError, match=f"'{NAME}' is not contiguous"):
        quantized({NAME: torch.randn(4, 8).t()}, target(SCHEMES["block"]), CPU)


@pytest.mark.parametrize(
    ("scheme", "most"),
    [("block", 0.027), ("ue8m0", 0.027), ("channel", 0.027), ("tensor", 0.027)],
)
def test_given_normal_weights_then_what_is_lost_of_them_is_what_the_docs_say(scheme: str, most: float) -> None:
    source = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    found = bytes_of(quantized({NAME: source}, target(SCHEMES[scheme]), CPU))
    codes = found[NAME].view(source.shape)
    dtype = torch.bfloat16 if scheme == "channel" else torch.float32
    scales = found[SCHEMES[scheme].scale_name(NAME)].view(dtype).view(SCHEMES[scheme].grid((512, 1024)))
    lost = error(source, codes, scales, SCHEMES[scheme])
    print(scheme, lost)
    assert 0 < lost < most
