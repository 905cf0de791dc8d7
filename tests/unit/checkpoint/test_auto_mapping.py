"""Rules are found out by comparing what a trainer gives with what an engine expects."""

from __future__ import annotations

import torch

from ckpt_transport import Mapping, rules
from ckpt_transport.checkpoint import Store, describe_given
from ckpt_transport.checkpoint.auto_mapping import find_mapping
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import TensorSpec

EXPERTS, SIZE, HIDDEN = 3, 4, 6
ENGINE = (
    TensorSpec("model.embed_tokens.weight", "BF16", (10, HIDDEN)),
    TensorSpec("model.layers.0.self_attn.qkv_proj.weight", "BF16", (8, HIDDEN)),
    TensorSpec("model.layers.0.norm.weight", "BF16", (HIDDEN,)),
    *(
        TensorSpec(f"model.layers.0.mlp.experts.{number}.{name}_proj.weight", "BF16", (SIZE, HIDDEN))
        for number in range(EXPERTS)
        for name in ("gate", "up")
    ),
    *(
        TensorSpec(f"model.layers.0.mlp.experts.{number}.down_proj.weight", "BF16", (HIDDEN, SIZE))
        for number in range(EXPERTS)
    ),
    TensorSpec("model.steps", "I64", ()),
)


def trainer() -> dict[str, torch.Tensor]:
    """FP32, wrapped, vocabulary padded, head tied, attention in three and experts in one."""
    embed = torch.randn(16, HIDDEN)
    layer = "module.model.layers.0"
    return {
        "module.model.embed_tokens.weight": embed,
        f"{layer}._orig_mod.self_attn.q_proj.weight": torch.randn(4, HIDDEN),
        f"{layer}._orig_mod.self_attn.k_proj.weight": torch.randn(2, HIDDEN),
        f"{layer}._orig_mod.self_attn.v_proj.weight": torch.randn(2, HIDDEN),
        f"{layer}._orig_mod.norm.weight": torch.randn(HIDDEN),
        f"{layer}._orig_mod.rotary.inv_freq": torch.randn(3),
        f"{layer}._orig_mod.mlp.experts.gate_up_proj": torch.randn(EXPERTS, 2 * SIZE, HIDDEN),
        f"{layer}._orig_mod.mlp.experts.down_proj": torch.randn(EXPERTS, HIDDEN, SIZE),
        "module.lm_head.weight": embed,
        "module.model.steps": torch.tensor(3),
    }


def found_for(tensors: dict[str, torch.Tensor], expected: tuple[TensorSpec, ...] | None) -> Mapping:
    return find_mapping({name: describe_given(name, tensor) for name, tensor in tensors.items()}, expected)


def test_given_a_trainer_that_differs_in_everything_then_the_rules_make_exactly_what_the_engine_expects() -> None:
    tensors = trainer()
    mapping = found_for(tensors, ENGINE)
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        stored = store.register("v1", tensors=tensors, mapping=mapping)
        assert stored.manifest.specs == {spec.name: spec for spec in ENGINE}
        found = stored.tensors()
    fused = tensors["module.model.layers.0._orig_mod.mlp.experts.gate_up_proj"].to(torch.bfloat16)
    assert torch.equal(found["model.layers.0.mlp.experts.2.up_proj.weight"], fused[2, SIZE:])
    assert {type(rule) for rule in mapping.rules} == {
        rules.Unwrap, rules.Strip, rules.Drop, rules.Unstack, rules.Split, rules.Fuse, rules.Tie, rules.Cut, rules.Cast
    }  # fmt: skip


def test_given_experts_one_by_one_where_the_engine_has_them_in_one_then_they_are_fused_and_stacked() -> None:
    experts = {spec.name: torch.randn(spec.shape) for spec in ENGINE if ".experts." in spec.name}
    layer = "model.layers.0.mlp.experts"
    expected = (
        TensorSpec(f"{layer}.gate_up_proj", "F32", (EXPERTS, 2 * SIZE, HIDDEN)),
        TensorSpec(f"{layer}.down_proj", "F32", (EXPERTS, HIDDEN, SIZE)),
    )
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        found = store.register("v1", tensors=experts, mapping=found_for(experts, expected)).tensors()
        assert found.keys() == {spec.name for spec in expected}
        for number in range(EXPERTS):
            gate, up, down = (experts[f"{layer}.{number}.{name}_proj.weight"] for name in ("gate", "up", "down"))
            assert torch.equal(found[f"{layer}.gate_up_proj"][number], torch.cat((gate, up)))
            assert torch.equal(found[f"{layer}.down_proj"][number], down)


def test_given_names_as_they_are_expected_then_there_are_no_rules() -> None:
    tensors = {spec.name: torch.zeros(spec.shape, dtype=torch.bfloat16) for spec in ENGINE[:-1]}
    assert found_for(tensors, ENGINE[:-1]) == Mapping(())


def test_given_an_engine_whose_names_have_a_prefix_then_it_is_added() -> None:
    expected = (TensorSpec("model.a.weight", "F32", (2,)), TensorSpec("model.b.weight", "F32", (2,)))
    tensors = {"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}
    assert found_for(tensors, expected) == Mapping.of(rules.Add("model."))


def test_given_what_no_rule_explains_then_it_stays_for_the_engine_to_refuse() -> None:
    expected = (TensorSpec("a.weight", "F32", (2,)),)
    assert found_for({"a.weight": torch.zeros(2), "other": torch.zeros(2)}, expected) == Mapping(())
    assert found_for({"a.weight": torch.zeros(3)}, expected) == Mapping(()), "only vocabularies are padded"


def test_given_an_engine_that_does_not_say_then_only_wellknown_prefixes_are_taken_off() -> None:
    mapping = found_for(trainer(), None)
    assert mapping == Mapping.of(rules.Unwrap("_orig_mod"), rules.Strip("module."))


def test_given_norms_in_another_type_than_the_rest_then_each_is_cast_to_its_own() -> None:
    expected = (TensorSpec("a", "BF16", (2,)), TensorSpec("norm", "F32", (2,)), TensorSpec("b", "F16", (2,)))
    mapping = found_for({"a": torch.zeros(2), "norm": torch.zeros(2), "b": torch.zeros(2)}, expected)
    assert mapping == Mapping.of(rules.Cast("BF16", "a"), rules.Cast("F16", "b"))


def test_given_leftovers_outside_of_what_is_wrapped_then_they_do_not_hide_its_prefix() -> None:
    given = {"module.fc.weight": torch.zeros(2), "rope.inv_freq": torch.zeros(2), "v_head.bias": torch.zeros(1)}
    mapping = found_for(given, (TensorSpec("fc.weight", "F32", (2,)),))
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        assert list(store.register("v1", tensors=given, mapping=mapping).manifest.specs) == ["fc.weight"]
    assert found_for(given, None) == Mapping.of(rules.Strip("module.")), "an engine that does not say may load them"
