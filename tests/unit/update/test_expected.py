"""What is said of names that differ in the same way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ckpt_transport import ParameterServer
from ckpt_transport.errors import PlanMismatchError, UpdateAbortedError
from ckpt_transport.planning import TensorSpec
from ckpt_transport.update.expected import check_expected, in_the_way
from ckpt_transport_torch import attach

NAMES = ("model.layers.0.weight", "model.layers.1.weight", "lm_head.weight")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "policy."])
def test_given_a_prefix_of_all_names_then_it_is_named_with_the_cure(prefix: str) -> None:
    prefixed = [prefix + name for name in NAMES]
    said = in_the_way("version 'v2'", prefixed, "Llama", NAMES)
    assert said.startswith(f": all names of version 'v2' begin with '{prefix}', and those of Llama do not;")
    assert f"{{name.removeprefix('{prefix}'): tensor for name, tensor in tensors.items()}}" in said
    said = in_the_way("version 'v2'", NAMES, "Llama", prefixed)
    assert said.startswith(f": all names of Llama begin with '{prefix}', and those of version 'v2' do not; attach")
    assert f"model.{prefix.rstrip('.')})" in said


def test_given_what_wrappers_put_inside_names_then_it_is_named() -> None:
    wrapped = [name.replace("layers.", "layers._orig_mod.") for name in NAMES]
    said = in_the_way("version 'v2'", wrapped, "Llama", NAMES)
    assert "names of version 'v2' contain '_orig_mod.'" in said
    assert "name.replace('_orig_mod.', '')" in said


@pytest.mark.parametrize("others", [["a.b", "a.c"], [], ["lm_head.weight"], ["model.layers.0.weight"]])
def test_given_names_that_differ_otherwise_then_nothing_is_said(others: list[str]) -> None:
    assert in_the_way("version 'v2'", others, "Llama", NAMES) == ""
    assert in_the_way("version 'v2'", NAMES, "Llama", others) == ""


@pytest.mark.parametrize("wrapped_side", ["version", "engine"])
def test_given_the_names_of_a_wrapped_module_then_they_are_refused_with_the_cure(wrapped_side: str) -> None:
    """Given a module that is wrapped on one side only, then the update says so, and by the cure it succeeds."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    wrapped = torch.nn.DataParallel(module)
    inner, outer = ({name: torch.ones_like(t) for name, t in each.state_dict().items()} for each in (module, wrapped))
    with attach(wrapped if wrapped_side == "engine" else module, version="v1") as served, ParameterServer() as server:
        server.register("v2", tensors=outer if wrapped_side == "version" else inner)
        with pytest.raises(UpdateAbortedError, match=r"lacks tensor .*: all names of .* begin with 'module\.', and"):
            server.update("v2", [served.address])
        server.register("v3", tensors=inner if wrapped_side == "version" else outer)
        server.update("v3", [served.address])
        assert served.version == "v3"


def manifest_of(brought: list[TensorSpec], *mappings: str) -> Any:
    return SimpleNamespace(version="v2", specs={spec.name: spec for spec in brought}, mappings=mappings)


EMBEDDING, HEAD, NORM = (TensorSpec(name, "BF16", (4,)) for name in ("embed_tokens.weight", "lm_head.weight", "norm"))


@pytest.mark.parametrize(
    ("brought", "said"),
    [
        ([EMBEDDING, NORM], ""),
        ([EMBEDDING, NORM, HEAD], ""),
        ([HEAD, NORM], ""),
        ([NORM], "lacks tensor embed_tokens.weight .* which the engine has$"),
        (
            [EMBEDDING, NORM, TensorSpec("other", "BF16", (4,))],
            r"has tensors that the engine does not: other; .*rules\.Drop",
        ),
    ],
)
def test_given_another_name_of_a_tied_tensor_then_it_is_not_too_much(brought: list[TensorSpec], said: str) -> None:
    plan: Any = SimpleNamespace(manifest=manifest_of(brought))
    engine: Any = SimpleNamespace(label="the engine", ties=lambda: (frozenset([EMBEDDING.name, HEAD.name]),))
    if not said:
        check_expected(plan, engine, (EMBEDDING, NORM))
        return
    with pytest.raises(PlanMismatchError, match=said):
        check_expected(plan, engine, (EMBEDDING, NORM))


@pytest.mark.parametrize(
    ("brought", "said"),
    [
        ([NORM, TensorSpec("wte", "BF16", (4,))], r"has, and has wte, which the engine does not; .* give a mapping"),
        ([EMBEDDING, TensorSpec("norm", "F32", (4,))], r'norm is F32 \[4\].*; cast it, or .*: rules.Cast\("BF16"\)'),
        ([EMBEDDING, TensorSpec("norm", "BF16", (5,))], "a checkpoint of the same model"),
        ([EMBEDDING, TensorSpec("norm", "I64", (4,))], "a checkpoint of the same model"),
    ],
)
def test_given_other_names_types_or_shapes_then_the_error_says_what_helps(brought: list[TensorSpec], said: str) -> None:
    plan: Any = SimpleNamespace(manifest=manifest_of(brought))
    engine: Any = SimpleNamespace(label="the engine", ties=tuple)
    with pytest.raises(PlanMismatchError, match=said):
        check_expected(plan, engine, (EMBEDDING, NORM))


def test_given_a_mapping_that_lacks_a_cast_then_the_error_says_which_rule_to_add() -> None:
    plan: Any = SimpleNamespace(manifest=manifest_of([EMBEDDING, TensorSpec("norm", "F32", (4,))], "strip module."))
    engine: Any = SimpleNamespace(label="the engine", ties=tuple)
    with pytest.raises(PlanMismatchError, match=r"cast it, or add rules.Cast\(\"BF16\"\) to the mapping"):
        check_expected(plan, engine, (EMBEDDING, NORM))
