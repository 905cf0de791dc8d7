"""Given a target that a version was made for, when the next one comes, then what is worked out already is used again.

And only where it holds: every version has the bits that it would have as the first.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection

import pytest
import torch

from ckpt_transport.errors import CheckpointError, PlanMismatchError
from ckpt_transport.planning import TensorSpec
from ckpt_transport_fp8 import Target, quantized
from ckpt_transport_fp8.recipe import MOST
from ckpt_transport_fp8.scheme import Scheme
from ckpt_transport_fp8.target import Wanted
from tests.unit.adapters.test_fp8_quantized import CPU, FP8, NAME, SCALE, SCHEMES, bytes_of, like, specs, target, weight

Weights = dict[str, torch.Tensor]
OTHER = NAME.replace("up_proj", "gate_proj")
NORM = "model.norm.weight"


def weights(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        NAME: weight(300, 200, torch.bfloat16, seed),
        NORM: torch.randn(100, generator=generator).bfloat16(),
        OTHER: weight(130, 260, torch.bfloat16, seed + 1),
    }


def expect_as_fresh(made: Weights, known: Target, scheme: Scheme) -> None:
    """For the known target, ``made`` becomes what it becomes for one that has seen nothing."""
    fresh, again = quantized(made, target(scheme), CPU), quantized(made, known, CPU)
    assert list(again.tensors) == list(fresh.tensors)
    assert again.conversions == fresh.conversions
    found = bytes_of(again)
    for name, expected in bytes_of(fresh).items():
        assert torch.equal(found[name], expected), name


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of tensors for which a target was asked what it wants."""
    names: list[str] = []
    wants = Target.wants

    def recording(self: Target, source: TensorSpec, brought: Collection[str]) -> Wanted:
        names.append(source.name)
        return wants(self, source, brought)

    monkeypatch.setattr(Target, "wants", recording)
    return names


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_given_the_next_version_then_it_has_the_bits_of_a_fresh_one_and_the_one_before_keeps_its_own(
    scheme: Scheme,
) -> None:
    known = target(scheme)
    first = quantized(weights(1), known, CPU)
    before = bytes_of(first)
    expect_as_fresh(weights(2), known, scheme)
    after = bytes_of(first)
    assert all(torch.equal(after[name], expected) for name, expected in before.items())


def test_given_a_target_then_it_is_asked_once_for_what_it_wants(asked: list[str]) -> None:
    known = target(SCHEMES["block"])
    for seed in range(3):
        quantized(weights(seed), known, CPU)
    assert asked == [NAME, NORM, OTHER]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_given_another_name_shape_type_order_or_number_then_it_is_noticed(scheme: Scheme) -> None:
    known = target(scheme)
    quantized(weights(0), known, CPU)
    renamed = {name.replace("up_proj", "down_proj"): tensor for name, tensor in weights(1).items()}
    reshaped = weights(2) | {NAME: weight(200, 300, torch.bfloat16, 2)}
    retyped = weights(3) | {OTHER: weight(130, 260, torch.float32, 3)}
    reordered = dict(reversed(weights(4).items()))
    fewer = {name: tensor for name, tensor in weights(5).items() if name != OTHER}
    for changed in (renamed, reshaped, retyped, reordered, fewer, weights(6)):
        expect_as_fresh(changed, known, scheme)


def test_given_another_target_then_it_is_asked_itself() -> None:
    for scheme in SCHEMES.values():
        expect_as_fresh(weights(0), target(scheme), scheme)


def test_given_the_tensors_of_a_target_when_its_maker_changes_them_later_then_that_changes_nothing() -> None:
    known = specs(FP8, SCALE)
    made_for = like(known)
    quantized({NAME: torch.randn(130, 16)}, made_for, CPU)
    known.clear()
    quantized({NAME: torch.randn(130, 16)}, made_for, CPU)
    quantized({NAME: torch.randn(130, 16).bfloat16()}, made_for, CPU)


def test_given_what_was_refused_then_it_is_refused_again() -> None:
    known = like(specs(FP8))
    for _ in range(2):
        with pytest.raises(PlanMismatchError, match="lacks"):
            quantized({NAME: torch.randn(130, 16)}, known, CPU)


def test_given_a_later_version_then_it_is_looked_at_like_the_first() -> None:
    known = target(SCHEMES["block"])
    quantized(weights(0), known, CPU)
    wrong = weights(1)
    wrong[OTHER][129, 259] = float("nan")
    with pytest.raises(CheckpointError, match=rf"{OTHER} .* NaN or infinity"):
        quantized(wrong, known, CPU)
    with pytest.raises(CheckpointError, match=f"'{NAME}' is not contiguous"):
        quantized(weights(1) | {NAME: weight(200, 300, torch.bfloat16, 0).t()}, known, CPU)
    with pytest.raises(CheckpointError, match=f"'{NAME}' is torch.sparse_coo"):
        quantized(weights(1) | {NAME: weight(300, 200, torch.bfloat16, 0).to_sparse()}, known, CPU)
    with pytest.raises(CheckpointError, match=f"'{NAME}' is on the meta device"):
        quantized(weights(1) | {NAME: weight(300, 200, torch.bfloat16, 0).to("meta")}, known, CPU)
    expect_as_fresh(weights(1), known, SCHEMES["block"])


def test_given_a_version_that_is_gone_then_none_of_its_weights_are_kept() -> None:
    known, made = target(SCHEMES["block"]), weights(0)
    kept = [weakref.ref(tensor) for tensor in made.values()]
    loan = quantized(made, known, CPU)
    bytes_of(loan)
    del loan, made
    gc.collect()
    assert [reference() for reference in kept] == [None, None, None]


def test_given_many_targets_then_few_are_kept_and_none_for_longer_than_the_target(asked: list[str]) -> None:
    known = target(SCHEMES["block"])
    for _ in range(2):
        for rows in range(1, MOST + 1):
            quantized({NAME: torch.ones(rows, 16)}, known, CPU)
    assert len(asked) == MOST
    quantized({NAME: torch.ones(MOST + 1, 16)}, known, CPU)
    quantized({NAME: torch.ones(MOST, 16)}, known, CPU)
    assert len(asked) == MOST + 1
    quantized({NAME: torch.ones(1, 16)}, known, CPU)
    assert len(asked) == MOST + 2
    reference = weakref.ref(known)
    del known
    gc.collect()
    assert reference() is None
