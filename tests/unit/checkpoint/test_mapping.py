"""Rules between the trainer's names, types and shapes and the engine's: what becomes of tensors, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckpt_transport import Mapping, TensorShard, rules
from ckpt_transport.checkpoint import Store, StoredVersion, Tensors
from ckpt_transport.checkpoint.rule import Rule
from ckpt_transport.dtypes import as_tensor
from ckpt_transport.errors import CheckpointError, ConfigError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import run_by_run

untyped_rules: Any = rules
untyped_mapping: Any = Mapping
"""As those see them who check no types."""


def of_extents(stored: StoredVersion) -> dict[str, torch.Tensor]:
    """What sinks would get, by name: gathered, and cast, in pieces as buckets are."""
    raw: dict[str, torch.Tensor] = {}
    for place in run_by_run(stored.manifest.tensors):
        whole = raw.setdefault(place.spec.name, torch.zeros(place.spec.nbytes, dtype=torch.uint8))
        half = place.nbytes // 16 * 8
        for start, end in ((0, half), (half, place.nbytes)):
            stored.extents[place.extent].fill(whole[place.start + start : place.start + end], place.offset + start)
    specs = stored.manifest.specs
    return {name: as_tensor(bytes_, specs[name].dtype, specs[name].shape) for name, bytes_ in raw.items()}


def mapped(tensors: Tensors, *chosen: Rule, how: str = "register") -> dict[str, torch.Tensor]:
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        if how == "lend":
            return of_extents(store.lend("v1", tensors, mapping=Mapping.of(*chosen)))
        given: Any = iter(tensors.items()) if how == "stream" else tensors
        return of_extents(store.register("v1", tensors=given, mapping=Mapping.of(*chosen)))


every_way = pytest.mark.parametrize("how", ["register", "stream", "lend"])


def agree(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(
        found[name].dtype is each.dtype and torch.equal(found[name], each) for name, each in expected.items()
    )


@every_way
def test_given_wrapped_names_then_rules_take_prefixes_off_rename_and_drop(how: str) -> None:
    one, two = torch.randn(3), torch.randn(2)
    tensors: Tensors = {
        "module.layers.0._orig_mod.fc.weight": one,
        "module.layers.0.inv_freq": two,
        "module.h.11.attn.weight": two,
        "module.h.11._extra_state": None,  # type: ignore[dict-item]
    }
    found = mapped(
        tensors,
        rules.Strip("module."),
        rules.Unwrap("_orig_mod"),
        rules.Drop(r".*inv_freq|.*_extra_state"),
        rules.Rename(r"h\.(\d+)\.attn\.(.*)", r"layers.\1.self_attn.\2"),
        rules.Add("model."),
        how=how,
    )
    assert agree(found, {"model.layers.0.fc.weight": one, "model.layers.11.self_attn.weight": two})


@every_way
@given(data=st.data())
def test_given_a_cast_then_all_floats_become_the_type_and_others_stay(how: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    to = data.draw(st.sampled_from(["BF16", "F16", "F32", "F64"]))
    shape = data.draw(st.lists(st.integers(0, 40), max_size=3))
    tensors: Tensors = {
        "first": torch.randn(7, 3),
        "weight": torch.randn(shape).to(dtype),
        "steps": torch.arange(5),
        "last": torch.randn(shape).to(dtype),
    }
    cast = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}[to]
    expected = {
        name: each.to(cast) if each.is_floating_point() else each
        for name, each in tensors.items()
        if isinstance(each, torch.Tensor)
    }
    assert agree(mapped(tensors, rules.Cast(to), how=how), expected)


@every_way
def test_given_fused_experts_then_each_gets_its_own_tensors(how: str) -> None:
    fused, down = torch.randn(4, 6, 5), torch.randn(4, 5, 3)
    found = mapped(
        {"m.experts.gate_up_proj": fused, "m.experts.down_proj": down},
        rules.Unstack(r"(.*\.experts)\.(gate_up_proj|down_proj)", r"\1.{index}.\2.weight"),
        rules.Split(r"(.*)\.gate_up_proj\.weight", (r"\1.gate_proj.weight", r"\1.up_proj.weight")),
        how=how,
    )
    expected: dict[str, torch.Tensor] = {}
    for expert in range(4):
        expected[f"m.experts.{expert}.gate_proj.weight"] = fused[expert, :3]
        expected[f"m.experts.{expert}.up_proj.weight"] = fused[expert, 3:]
    expected.update({f"m.experts.{expert}.down_proj.weight": down[expert] for expert in range(4)})
    assert agree(found, expected)


@pytest.mark.parametrize("how", ["register", "lend"])
@given(data=st.data())
def test_given_pieces_that_are_fused_then_splitting_them_again_gives_the_pieces(how: str, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, 1)) if how == "register" else 0
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    other = data.draw(st.integers(1, 4))
    shapes = [(size, other) if dim == 0 else (other, size) for size in sizes]
    tensors: Tensors = {f"l.{n}.weight": torch.randn(shape) for n, shape in enumerate(shapes)}
    whole = torch.cat([each for each in tensors.values() if isinstance(each, torch.Tensor)], dim)
    fuse = rules.Fuse(tuple(rf"(.*)\.{n}\.(weight)" for n in range(len(sizes))), r"\1.all.\2", dim)
    assert agree(mapped(tensors, fuse, how=how), {"l.all.weight": whole})
    split = rules.Split(r"(.*)\.all\.(.*)", tuple(rf"\1.{n}.\2" for n in range(len(sizes))), tuple(sizes), dim)
    assert agree(mapped(tensors, fuse, split, how=how), tensors)  # type: ignore[arg-type]


def test_given_what_is_fused_along_rows_then_the_pool_holds_it_whole() -> None:
    tensors = {name: torch.randn(3, 5) for name in ("q", "k", "v")}
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        stored = store.register("v1", tensors=tensors, mapping=Mapping.of(rules.Fuse(("q", "k", "v"), "qkv")))
        assert [(place.spec.name, place.whole) for place in stored.manifest.tensors] == [("qkv", True)]
        assert torch.equal(stored.tensors()["qkv"], torch.cat([*tensors.values()]))
        (conversion,) = stored.manifest.conversions
        assert (conversion.how, conversion.tensors) == ("fuse q, k, v qkv", ("qkv",))


def test_given_experts_by_number_then_a_stack_puts_them_in_the_order_of_numbers() -> None:
    experts = {f"e.{number}.w": torch.full((2, 3), float(number)) for number in (10, 2, 0, 1, *range(3, 10))}
    found = mapped(dict(experts), rules.Stack(r"(.*)\.(?P<index>\d+)\.w", r"\1.all"))
    assert agree(found, {"e.all": torch.stack([experts[f"e.{number}.w"] for number in range(11)])})


@every_way
@given(rows=st.integers(1, 12), columns=st.integers(0, 4), cut=st.integers(1, 12))
def test_given_a_padded_vocabulary_then_its_first_rows_are_kept(how: str, rows: int, columns: int, cut: int) -> None:
    tensor = torch.randn(rows, columns)
    if cut > rows:
        with pytest.raises(CheckpointError, match=rf"rule 1 \(cut embed {cut}\): .* has no {cut} rows"):
            mapped({"embed": tensor}, rules.Cut("embed", cut), how=how)
    else:
        assert agree(mapped({"embed": tensor}, rules.Cut("embed", cut), how=how), {"embed": tensor[:cut]})


@pytest.mark.parametrize("how", ["register", "lend"])
def test_given_a_tied_head_then_it_is_dropped_if_equal_and_refused_by_name_if_not(how: str) -> None:
    embed = torch.randn(4, 3)
    embed[0, 0] = float("nan")
    tie = rules.Tie("lm_head.weight", "embed.weight")
    found = mapped({"embed.weight": embed, "lm_head.weight": embed.clone()}, tie, how=how)
    assert list(found) == ["embed.weight"]
    other = embed.clone()
    other[3, 2] += 1
    with pytest.raises(CheckpointError, match=r"rule 1 \(tie .*'lm_head\.weight' has other bytes than 'embed\.weight'"):
        mapped({"embed.weight": embed, "lm_head.weight": other}, tie, how=how)


@given(st.data())
def test_given_parts_of_tensors_then_rules_make_of_them_what_they_make_of_the_whole(data: st.DataObject) -> None:
    """Two ranks hold boxes of a tensor; what both give together is what one gives of all of it."""
    rows, columns = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 6))
    dim = data.draw(st.integers(0, 1))
    at = data.draw(st.integers(0, (rows, columns)[dim]))
    cut = data.draw(st.integers(1, rows))
    whole = torch.randn(rows, columns)
    parts = [whole[:at], whole[at:]] if dim == 0 else [whole[:, :at], whole[:, at:]]
    chosen = (
        rules.Cut("w", cut),
        rules.Cast("BF16"),
        rules.Split("w", ("head", "tail"), (cut // 2, cut - cut // 2)),
        rules.Fuse(("tail", "head"), "turned"),
    )
    raw = torch.zeros(2 * cut * columns, dtype=torch.uint8)
    given_bytes = 0
    for rank, part in enumerate(parts):
        offsets = (0, 0) if rank == 0 else (at, 0) if dim == 0 else (0, at)
        with Store(rank=rank, world_size=2, pool=MemoryKind.PRIVATE, threads=1) as store:
            given: Tensors = {"w": TensorShard(part, (rows, columns), offsets)}
            stored = store.register("v1", tensors=given, mapping=Mapping.of(*chosen))
            for place in run_by_run(stored.manifest.tensors):
                stored.extents[0].fill(raw[place.start : place.start + place.nbytes], place.offset)
                given_bytes += place.nbytes
    expected = whole[:cut].to(torch.bfloat16)
    expected = torch.cat([expected[cut // 2 :], expected[: cut // 2]])
    assert given_bytes == raw.numel()
    assert torch.equal(raw.view(torch.bfloat16).view(cut, columns), expected)


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ([rules.Rename("a|b", "c")], r"rule 1 \(rename a\|b c\): 'a' and 'b' both become 'c'"),
        ([rules.Strip("x."), rules.Rename("lay.*", "q")], r"rule 1 \(strip x\.\) matches no tensor; .*optional=True"),
        ([rules.Drop("layer")], r"matches no tensor; correct it \(there is 'layers'\)"),
        ([rules.Cast("F16", "layers")], r"'layers' has elements from -7e\+04 to 1, which overflow in F16"),
        ([rules.Split("layers", ("p", "q"))], r"cannot be split along dimension 0 into 2 equal pieces"),
        ([rules.Fuse(("a", "zz"), "c")], r"made of 2 tensors, and there is none called zz beside 'a'"),
        ([rules.Fuse(("a", "steps"), "c")], r"cannot be joined along dimension 0"),
        ([rules.Fuse(("a|b", "steps"), "c")], r"'a' and 'b' are both piece 0 of one tensor"),
        ([rules.Fuse(("a", "a"), "c")], r"'a' is to be 2 pieces, and can be one"),
        ([rules.Stack("(?P<index>[ab])", "c")], r"'a' has no number where"),
        ([rules.Tie("a", "zz")], r"'a' is to equal 'zz', which this source has not"),
        ([rules.Unstack("scalar", "x.{index}")], r"'scalar' is a scalar, and no stack"),
        ([rules.Drop(".*")], "at least one tensor"),
    ],
)
def test_given_a_rule_that_cannot_be_applied_then_rule_and_tensor_are_named(chosen: list[Rule], reason: str) -> None:
    tensors: Tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(2, 3),
        "layers": torch.tensor([1.0, -7e4, 0.5]),
        "steps": torch.arange(3),
        "scalar": torch.tensor(1.0),
    }
    with pytest.raises(CheckpointError, match=reason):
        mapped(tensors, *chosen)


def test_given_infinity_and_nan_then_a_cast_keeps_them() -> None:
    tensor = torch.tensor([1.0, float("inf"), float("-inf")])
    assert agree(mapped({"a": tensor}, rules.Cast("F16")), {"a": tensor.to(torch.float16)})
    nan = torch.tensor([float("nan"), 3.0])
    assert mapped({"a": nan}, rules.Cast("BF16"))["a"].isnan().tolist() == [True, False]
    with pytest.raises(CheckpointError, match="overflow in F16"):
        mapped({"a": torch.tensor([float("nan"), 1e6])}, rules.Cast("F16"))


def test_given_a_rule_that_needs_several_tensors_then_they_may_not_come_one_by_one() -> None:
    with pytest.raises(CheckpointError, match=r"rule 1 \(fuse a, b c\) looks at several tensors.*give a mapping"):
        mapped({"a": torch.zeros(2), "b": torch.zeros(2)}, rules.Fuse(("a", "b"), "c"), how="stream")


def test_given_an_optional_rule_or_several_ranks_then_it_may_match_nothing() -> None:
    assert list(mapped({"a": torch.zeros(1)}, rules.Drop("inv_freq", optional=True))) == ["a"]
    with Store(rank=1, world_size=2, pool=MemoryKind.PRIVATE, threads=1) as store:
        store.register("v1", tensors={"a": torch.zeros(1)}, mapping=Mapping.of(rules.Drop("lm_head")))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: rules.Rename("(", "x"), r"'\(' is no regular expression"),
        (lambda: rules.Cast("F8_E4M3"), "for FP8 use ckpt_transport_fp8"),
        (lambda: untyped_rules.Cast(torch.bfloat16), r"the name of a type; say 'BF16' for torch\.bfloat16"),
        (lambda: rules.Cut("a", 0), "must keep at least 1"),
        (lambda: rules.Stack("a", "b"), "needs a group"),
        (lambda: rules.Split("a", ("b", "c"), (1,)), "give one for each"),
        (lambda: rules.Split("a", ("b", "c"), (3, -1)), r"sizes \[3, -1\], and none can be below 0"),
        (
            lambda: untyped_rules.Split("a", "bc"),
            "split has into='bc' and cannot have that: Expected `array`, got `str`",
        ),
        (lambda: untyped_rules.Cut("a", "2"), "cut has rows='2' and cannot have that: Expected `int`"),
        (lambda: untyped_rules.Strip(5), "strip has prefix=5 and cannot have that: Expected `str`"),
        (lambda: untyped_rules.Drop(["a"]), r"drop has names=\['a'\] and cannot have that"),
        (lambda: untyped_rules.Lora(alpha="16"), "lora has alpha='16' and cannot have that"),
        (lambda: rules.Tie("a", "a"), "tie leaves out 'a', which is to equal itself"),
        (lambda: untyped_mapping.of("strip"), "'strip' is no rule: give rules.Strip"),
        (lambda: untyped_mapping.of([rules.Strip("a")]), "is no rule: give rules.Strip"),
    ],
)
def test_given_what_is_no_rule_then_it_is_refused_when_it_is_made(make: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make()


def test_given_files_then_what_is_only_renamed_stays_in_their_pool_and_casts_get_one_of_their_own(
    tmp_path: Path,
) -> None:
    tensors = {"module.b": torch.randn(5, 3), "module.a": torch.arange(6), "module.none": torch.zeros(0, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        strip = rules.Strip("module.")
        stored = store.register(
            "v1", directory=tmp_path, mapping=Mapping.of(strip, rules.Split("b", ("x", "y"), (2, 3)))
        )
        found = of_extents(stored)
        assert torch.equal(found["x"], tensors["module.b"][:2])
        assert torch.equal(found["y"], tensors["module.b"][2:])
        assert sorted(found) == ["a", "none", "x", "y"]
        cast = store.register("v2", directory=tmp_path, mapping=Mapping.of(strip, rules.Cast("BF16")))
        assert torch.equal(cast.tensors()["b"], tensors["module.b"].to(torch.bfloat16))
        with pytest.raises(CheckpointError, match="matches no tensor"):
            store.register("v3", directory=tmp_path, mapping=Mapping.of(rules.Strip("model.")))
        store.register("v3", directory=tmp_path, mapping=Mapping.of(strip))


def test_given_toml_then_it_is_the_mapping_that_python_makes(tmp_path: Path) -> None:
    file = tmp_path / "mapping.toml"
    file.write_text(
        """
        [[rules]]
        rule = "strip"
        prefix = "module."
        optional = true
        [[rules]]
        rule = "split"
        names = '(.*)\\.qkv'
        into = ['\\1.q', '\\1.k', '\\1.v']
        sizes = [4, 2, 2]
        """
    )
    split = rules.Split(r"(.*)\.qkv", (r"\1.q", r"\1.k", r"\1.v"), (4, 2, 2))
    assert Mapping.load(file) == Mapping.of(rules.Strip("module.", optional=True), split)
    for text, reason in [
        ('[[rules]]\nrule = "shuffle"', "shuffle.*rules are add, cast, cut,"),
        ("", "is no mapping: .*`rules`; a mapping is tables"),
        ('[[rules]]\nrule = "strip"\nprefx = "a"', "prefx"),
        ('[[rules]]\nrule = "cast"\ndtype = "F8_E4M3"', "for FP8 use"),
        ("rules = ", "mapping.toml"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            Mapping.load(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Mapping.load(tmp_path / "none.toml")


def test_given_columns_that_a_rule_has_cut_when_they_are_lent_then_the_rule_and_another_way_are_named() -> None:
    split = rules.Split("w", ("q", "k"), dim=1)
    with pytest.raises(
        CheckpointError, match=r"'q', as rules have made it \(split w q, k 1\), .*; register the tensors"
    ):
        mapped({"w": torch.randn(2, 4)}, split, how="lend")
    assert mapped({"w": torch.randn(2, 4)}, split).keys() == {"q", "k"}


@every_way
def test_given_rules_that_change_only_names_then_the_manifest_says_which(how: str) -> None:
    chosen = rules.Strip("module."), rules.Rename("a", "b"), rules.Drop("c")
    tensors = {"module.a": torch.zeros(2), "module.c": torch.zeros(2)}
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        given: Any = iter(tensors.items()) if how == "stream" else tensors
        take = store.lend if how == "lend" else store.register
        stored = take("v1", tensors=given, mapping=Mapping.of(*chosen))
        assert stored.manifest.mappings == ("strip module.; rename a b; drop c",)
        assert store.lend("v2", {"b": torch.zeros(2)}).manifest.mappings == ()
