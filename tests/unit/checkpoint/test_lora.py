"""Adapters are merged on the way, in FP32, whatever is cut, cast and lent; what no product says is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport import Mapping, TensorShard, rules
from ckpt_transport.checkpoint import Store, Tensors, low_rank
from ckpt_transport.errors import CheckpointError, ConfigError
from ckpt_transport.memory import MemoryKind
from tests.unit.checkpoint.test_mapping import agree, mapped

MODULE = "model.layers.0.q_proj"
registered_or_lent = pytest.mark.parametrize("how", ["register", "lend"])


def adapted(rows: int = 6, columns: int = 4, rank: int = 2, adapter: str = "default") -> dict[str, torch.Tensor]:
    return {
        f"{MODULE}.base_layer.weight": torch.randn(rows, columns),
        f"{MODULE}.lora_A.{adapter}.weight": torch.randn(rank, columns),
        f"{MODULE}.lora_B.{adapter}.weight": torch.randn(rows, rank),
    }


def sum_of(tensors: dict[str, torch.Tensor], alpha: float, adapter: str = "default") -> torch.Tensor:
    base, a, b = (
        tensors[f"{MODULE}.{name}.weight"] for name in ("base_layer", f"lora_A.{adapter}", f"lora_B.{adapter}")
    )
    return base.double() + alpha / a.shape[0] * b.double() @ a.double()


@registered_or_lent
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_an_adapter_then_its_product_is_added_in_fp32_and_rounded_once(how: str, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in adapted(640, 130, 8).items()}
    found = mapped(tensors, rules.Lora(alpha=16), rules.Unwrap("base_layer"), rules.Cast("BF16"), how=how)
    exact = sum_of(tensors, 16)
    assert list(found) == [f"{MODULE}.weight"]
    (merged,) = found.values()
    assert merged.dtype is torch.bfloat16
    assert merged.double() == pytest.approx(exact, rel=2**-8, abs=1e-5)
    assert (merged == exact.to(torch.bfloat16)).double().mean() > 0.99, "once: nearly all are the closest there are"


@registered_or_lent
def test_given_adapters_of_other_ranks_then_each_is_added_with_its_own_scaling(how: str) -> None:
    one, two = adapted(), adapted(rank=3, adapter="second")
    found = mapped(
        two | one,
        rules.Lora(alpha=8),
        rules.Lora(adapter="second", alpha=6, rank_stabilized=True),
        how=how,
    )
    (merged,) = found.values()
    of_second = sum_of(two, 6 * 3**0.5, "second") - two[f"{MODULE}.base_layer.weight"]
    assert merged == pytest.approx((sum_of(one, 8) + of_second).float(), rel=1e-5, abs=1e-5)


@registered_or_lent
def test_given_weights_with_a_row_for_each_input_then_the_product_is_transposed(how: str) -> None:
    tensors = adapted()
    tensors[f"{MODULE}.base_layer.weight"] = tensors[f"{MODULE}.base_layer.weight"].T.contiguous()
    (merged,) = mapped(tensors, rules.Lora(alpha=2, transposed=True), how=how).values()
    a, b = (tensors[f"{MODULE}.lora_{factor}.default.weight"] for factor in "AB")
    assert merged == pytest.approx(tensors[f"{MODULE}.base_layer.weight"] + (b @ a).T, rel=1e-5, abs=1e-5)


def test_given_modules_with_another_alpha_then_a_rule_for_their_names_takes_them_first() -> None:
    tensors = adapted()
    (merged,) = mapped(tensors, rules.Lora(alpha=1, names=r".*q_proj"), rules.Lora(alpha=9, optional=True)).values()
    assert merged == pytest.approx(sum_of(tensors, 1).float(), rel=1e-5, abs=1e-5)


@given(rows=st.integers(1, 40), columns=st.integers(1, 9), block=st.integers(1, 64), data=st.data())
def test_given_any_range_of_an_extent_then_it_has_the_bytes_of_the_whole(
    rows: int, columns: int, block: int, data: st.DataObject
) -> None:
    """Buckets end anywhere, and what two sinks get of one element is the same in every bit."""
    mapping = Mapping.of(rules.Lora(alpha=3), rules.Cast("BF16"))
    with pytest.MonkeyPatch.context() as patch, Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        patch.setattr(low_rank, "BLOCK_ELEMENTS", block)
        tensors = {"first": torch.randn(3), **adapted(rows, columns), "last": torch.ones(2, dtype=torch.int32)}
        (pool,) = store.register("copied", tensors=tensors, mapping=mapping).buffers
        (lent,) = store.lend("lent", tensors, mapping=mapping).extents
        first = data.draw(st.integers(0, pool.nbytes // 4)) * 4
        last = data.draw(st.integers(first // 4, pool.nbytes // 4)) * 4
        slots = [torch.zeros(last - first, dtype=torch.uint8) for _ in range(2)]
        pool.fill(slots[0], first)
        lent.fill(slots[1], first)
        placed = store.get("lent").manifest.tensors
        for place in placed:
            start, end = max(place.offset - first, 0), max(min(place.offset + place.nbytes, last) - first, 0)
            assert torch.equal(slots[0][start:end], slots[1][start:end])


@registered_or_lent
def test_given_what_is_cut_and_joined_afterwards_then_it_has_the_sums(how: str) -> None:
    tensors = adapted(rows=6)
    whole = sum_of(tensors, 4).float()
    split = mapped(tensors, rules.Lora(alpha=4), rules.Split(".*", ("q", "k"), (4, 2)), how=how)
    assert torch.cat([split["q"], split["k"]]) == pytest.approx(whole, rel=1e-5, abs=1e-5)
    rows = mapped(tensors, rules.Lora(alpha=4), rules.Unstack(".*", "row.{index}"), how=how)
    assert torch.stack(list(rows.values())) == pytest.approx(whole, rel=1e-5, abs=1e-5)
    stacked = mapped(
        tensors,
        rules.Lora(alpha=4),
        rules.Rename(".*", "expert.0"),
        rules.Stack(r"expert\.(?P<index>\d)", "experts"),
        how=how,
    )
    assert stacked["experts"] == pytest.approx(whole.unsqueeze(0), rel=1e-5, abs=1e-5)


def test_given_columns_that_are_cut_afterwards_then_they_have_the_sums() -> None:
    tensors = adapted(columns=4)
    split = mapped(tensors, rules.Lora(alpha=4), rules.Split(".*", ("left", "right"), dim=1))
    assert torch.cat(list(split.values()), 1) == pytest.approx(sum_of(tensors, 4).float(), rel=1e-5, abs=1e-5)


@registered_or_lent
@pytest.mark.parametrize("cut", [[(0, 3), (0, 4)], [(3, 6), (0, 4)], [(0, 6), (1, 3)]], ids=str)
def test_given_a_shard_of_the_weight_then_this_rank_sends_its_part_of_the_sum(
    how: str, cut: list[tuple[int, int]]
) -> None:
    tensors = adapted()
    name = f"{MODULE}.base_layer.weight"
    rows, columns = (slice(*each) for each in cut)
    shard = TensorShard(tensors[name][rows, columns].contiguous(), (6, 4), (rows.start, columns.start))
    given: Tensors = {**tensors, name: shard}
    found = mapped(given, rules.Lora(alpha=8), how=how)[name]
    assert found[rows, columns] == pytest.approx(sum_of(tensors, 8).float()[rows, columns], rel=1e-5, abs=1e-5)


def test_given_factors_that_are_lent_when_the_trainer_goes_on_then_the_version_keeps_them() -> None:
    tensors = adapted()
    expected = sum_of(tensors, 8).float()
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        stored = store.lend("v1", tensors, mapping=Mapping.of(rules.Lora(alpha=8), rules.Cast("BF16")))
        tensors[f"{MODULE}.lora_B.default.weight"].zero_()
        (extent,) = stored.extents
        extent.check()
        slot = torch.empty(48, dtype=torch.uint8)
        extent.fill(slot, 0)
        assert slot.view(torch.bfloat16).view(6, 4).float() == pytest.approx(expected, rel=2**-7)
        how = stored.manifest.conversions[0].how
        assert re.fullmatch("lora default, alpha 8, onto weights [0-9a-f]{16}; BF16 from F32", how)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("lora_magnitude_vector.default.weight", torch.ones(6), r"lora_magnitude_vector.*\(DoRA\).*merge it at the"),
        ("lora_B.default.bias", torch.ones(6), r"lora_B\.default\.bias' is no factor"),
        ("lora_B.default.weight", torch.ones(6, 2, 1, 1), "not those of a linear layer or an embedding"),
        ("lora_B.default.weight", torch.ones(5, 2), r"its adapter adds to floats of shape \[5, 4\]"),
        ("lora_B.default.weight", None, r"there is no '.*lora_B\.default\.weight'"),
        ("lora_A.default.weight", None, r"there is no '.*lora_A\.default\.weight'"),
        ("base_layer.weight", torch.ones(6, 4).to(torch.float8_e4m3fn), "dequantize it"),
        ("base_layer.weight", torch.ones(12, 1, dtype=torch.uint8), "dequantize it"),
        ("base_layer.weight", None, r"no '.*base_layer\.weight' to add them to; give state_dict\(\) of the whole"),
        ("lora_A.default.weight", TensorShard(torch.ones(1, 4), (2, 4), (0, 0)), "this rank has a part of '.*lora_A"),
    ],
)
def test_given_what_no_product_says_then_it_is_refused_by_name(name: str, tensor: object, said: str) -> None:
    tensors: dict[str, object] = {**adapted(), f"{MODULE}.{name}": tensor}
    given = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(CheckpointError, match=said):
        mapped(given, rules.Lora(alpha=8))  # type: ignore[arg-type]


def test_given_factors_without_a_rank_then_they_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"for '.*base_layer.weight' are of rank 0"):
        mapped(adapted(rank=0), rules.Lora(alpha=8, rank_stabilized=True))


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_given_an_alpha_that_is_no_number_then_the_rule_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"alpha of lora sql is {alpha}; give a finite number"):
        rules.Lora(adapter="sql", alpha=alpha)


def test_given_a_sum_that_overflows_then_it_is_refused_by_name() -> None:
    tensors = {name: tensor.fill_(100.0) for name, tensor in adapted().items()}
    with pytest.raises(CheckpointError, match=r"q_proj\.base_layer\.weight' has elements .* which overflow in F16"):
        mapped(tensors, rules.Lora(alpha=8), rules.Cast("F16"))
    assert agree(
        {name: each.isfinite() for name, each in mapped(tensors, rules.Lora(alpha=2), rules.Cast("F16")).items()},
        {f"{MODULE}.base_layer.weight": torch.ones(6, 4, dtype=torch.bool)},
    )


def test_given_tied_weights_of_which_one_has_an_adapter_then_they_are_not_taken_for_equal() -> None:
    tensors = adapted()
    tensors["lm_head.weight"] = tensors[f"{MODULE}.base_layer.weight"]
    with pytest.raises(CheckpointError, match="other bytes than"):
        mapped(tensors, rules.Lora(alpha=8), rules.Tie("lm_head.weight", f"{MODULE}.base_layer.weight"))
    found = mapped(tensors, rules.Lora(alpha=8))
    assert not torch.equal(found["lm_head.weight"], found[f"{MODULE}.base_layer.weight"])
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        assert store.register("v1", tensors=tensors, mapping=Mapping.of(rules.Lora(alpha=8))).manifest.same == ()


def test_given_toml_then_it_says_the_same_rule(tmp_path: Path) -> None:
    file = tmp_path / "mapping.toml"
    file.write_text('[[rules]]\nrule = "lora"\nalpha = 16\nadapter = "sql"\nrank_stabilized = true\n')
    assert Mapping.load(file) == Mapping.of(rules.Lora(alpha=16, adapter="sql", rank_stabilized=True))
    assert str(Mapping.load(file)) == "lora sql, alpha 16 by the root of the rank"


def how_of(store: Store, version: str, tensors: Tensors) -> str:
    mapping = Mapping.of(rules.Lora(alpha=8), rules.Unwrap("base_layer"))
    (conversion,) = store.register(version, tensors=tensors, mapping=mapping).manifest.conversions
    return conversion.how


def test_given_an_adapter_on_other_weights_then_the_manifest_tells_them_apart() -> None:
    tensors = adapted(640, 130, 8)
    base = tensors[f"{MODULE}.base_layer.weight"]
    with Store() as store:
        first = how_of(store, "step-1", tensors)
        tensors[f"{MODULE}.lora_A.default.weight"].add_(1)
        assert how_of(store, "step-2", tensors) == first, "a step of the adapter leaves the weights as they are"
        assert how_of(store, "copied", {name: tensor.clone() for name, tensor in tensors.items()}) == first
        base[-1, -1] += 1
        assert how_of(store, "step-3", tensors) != first
        base[-1, -1] -= 1
        cut = TensorShard(base[:, ::2].contiguous(), (640, 130), (0, 0))
        assert (
            how_of(store, "step-4", tensors)
            == how_of(store, "step-5", dict(tensors))
            != how_of(store, "part", {**tensors, f"{MODULE}.base_layer.weight": cut})
        )


def test_given_weights_that_took_the_place_of_others_then_their_digest_is_made_anew() -> None:
    """Given weights that torch puts where it has freed others, with as many writes, then the digest is not theirs."""
    found = set()
    with Store() as store:
        for seed in range(4):
            torch.manual_seed(seed)
            found.add(how_of(store, f"v{seed}", adapted(640, 130, 8)))
    assert len(found) == 4
