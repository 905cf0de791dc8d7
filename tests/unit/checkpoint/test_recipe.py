"""What rules make of tensors is kept for the next version whose tensors look alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ckpt_transport.checkpoint import Mapping, Store, rules
from ckpt_transport.checkpoint.given_tensor import GivenTensor
from ckpt_transport.checkpoint.mapping import Application
from ckpt_transport.checkpoint.recipe import Recipes
from ckpt_transport.checkpoint.rule import Rule
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import MemoryKind

Step = dict[str, torch.Tensor]


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one whenever rules are applied to all tensors of a version."""
    whole, calls = Application.whole, list[object]()

    def counted(application: Application, tensors: object) -> object:
        calls.append(tensors)
        return whole(application, tensors)

    monkeypatch.setattr(Application, "whole", counted)
    return calls


def step(seed: int) -> Step:
    """Weights as a trainer has them: some are parameters, some views of a larger one, some tied, some empty."""
    torch.manual_seed(seed)
    flat = torch.randn(40)
    tied = torch.nn.Parameter(torch.randn(6, 4))
    return {
        "m.a": torch.randn(6, 4),
        "m.b": torch.randn(6, 4).bfloat16(),
        "m.q": flat[:12].view(3, 4),
        "m.k": flat[12:24].view(3, 4),
        "m.e.0": torch.randn(2, 2),
        "m.e.1": torch.randn(2, 2),
        "m.stack": torch.randn(3, 2, 2),
        "m.t": torch.randn(4, 6).t(),
        "m.emb": tied,
        "m.head": tied,
        "m.none": torch.empty(0, 4),
        "m.steps": torch.arange(seed, seed + 3),
    }


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def seen(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, as_bytes(tensor)


def same(one: list[GivenTensor], other: list[GivenTensor]) -> bool:
    """Whether both give the same bytes from the same memory."""
    return len(one) == len(other) and all(
        (a.spec, list(a.ranges), a.replicated) == (b.spec, list(b.ranges), b.replicated)
        and seen(a.tensor) == seen(b.tensor)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    "chosen",
    [
        (rules.Strip("m."),),
        (rules.Strip("m."), rules.Add("model."), rules.Rename(r"model\.(.*)", r"x.\1")),
        (rules.Drop("m.none"), rules.Cast("BF16")),
        (rules.Cast("F32"), rules.Cut("m.emb", 5)),
        (rules.Split("m.a", ("m.x", "m.y")), rules.Cast("BF16", "m.x")),
        (rules.Split("m.a", ("m.x", "m.y"), dim=1),),
        (rules.Fuse(("m.q", "m.k"), "m.qk"),),
        (rules.Unstack("m.stack", "m.s.{index}"),),
        (rules.Stack(r"m\.e\.(?P<index>[0-9]+)", "m.es"),),
    ],
    ids=str,
)
def test_given_a_version_like_the_one_before_then_rules_are_not_applied_again_and_the_same_is_given(
    chosen: tuple[Rule, ...], applied: list[object]
) -> None:
    mapping, recipes = Mapping.of(*chosen), Recipes()
    for seed in (1, 2, 3):
        tensors, before = step(seed), len(applied)
        application, made = recipes.apply(mapping, tensors, replicated=False)
        assert len(applied) == before + (seed == 1)
        application.check_matched()
        expected = Application(mapping, replicated=False).whole(tensors)
        assert same(made.parts, expected.parts)
        assert made.conversions == expected.conversions


def reshaped(tensors: Step) -> None:
    tensors["m.a"] = torch.randn(8, 4)


def of_another_type(tensors: Step) -> None:
    tensors["m.a"] = tensors["m.a"].double()


def renamed(tensors: Step) -> None:
    tensors["m.new"] = tensors.pop("m.a")


def untied(tensors: Step) -> None:
    tensors["m.head"] = tensors["m.emb"].detach().clone()


def laid_out_in_another_way(tensors: Step) -> None:
    tensors["m.q"] = tensors["m.q"].clone()


@pytest.mark.parametrize("change", [reshaped, of_another_type, renamed, untied, laid_out_in_another_way])
def test_given_a_version_that_looks_otherwise_then_rules_are_applied_again(
    change: Callable[[Step], None], applied: list[object]
) -> None:
    mapping, recipes = Mapping.of(rules.Strip("m."), rules.Cast("BF16")), Recipes()
    recipes.apply(mapping, step(1), replicated=False)
    tensors = step(2)
    change(tensors)
    _, made = recipes.apply(mapping, tensors, replicated=False)
    assert applied[-1] is tensors
    assert same(made.parts, Application(mapping, replicated=False).whole(tensors).parts)


def test_given_tied_tensors_then_their_bytes_are_compared_in_every_version() -> None:
    mapping = Mapping.of(rules.Tie("m.head", "m.emb"))
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        store.register("v1", tensors=step(1), mapping=mapping)
        tensors = step(2)
        tensors["m.head"] = torch.randn(6, 4)
        with pytest.raises(CheckpointError, match=r"has other bytes than 'm\.emb'"):
            store.register("v2", tensors=tensors, mapping=mapping)


def test_given_a_tensor_that_has_lost_its_memory_then_it_is_named_as_in_the_first_version() -> None:
    mapping = Mapping.of(rules.Strip("m."))
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        store.register("v1", tensors=step(1), mapping=mapping)
        tensors = step(2)
        tensors["m.a"].untyped_storage().resize_(0)
        with pytest.raises(CheckpointError, match=r"'m.a' has no memory any more"):
            store.register("v2", tensors=tensors, mapping=mapping)
