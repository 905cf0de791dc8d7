"""A staging area takes a version in beside what is served, and holds the version before after the exchange."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ckpt_transport.engine import KnownShadowNeeds, ShadowNeeds, StagingArea
from ckpt_transport.errors import PlanMismatchError


def served() -> dict[str, torch.Tensor]:
    weight = torch.arange(12.0).view(3, 4)
    return {"weight": weight, "tied": weight, "bias": torch.ones(4, dtype=torch.bfloat16), "empty": torch.empty(0)}


def test_given_a_version_that_is_staged_when_exchanged_then_it_is_served_and_the_old_one_is_kept() -> None:
    tensors = served()
    area = StagingArea(tensors)
    assert area.nbytes == 12 * 4 + 4 * 2
    area.tensors["weight"].fill_(7)
    area.tensors["bias"].fill_(8)
    assert torch.equal(tensors["weight"], served()["weight"])
    area.exchange(tensors)
    assert (tensors["tied"] == 7).all()
    assert (tensors["bias"] == 8).all()
    assert torch.equal(area.tensors["weight"], served()["weight"])
    area.exchange(tensors)
    assert torch.equal(tensors["weight"], served()["weight"])


def test_given_tensors_that_were_replaced_when_exchanged_then_nothing_changes() -> None:
    tensors = served()
    area = StagingArea(tensors)
    tensors["bias"] = torch.zeros(4, dtype=torch.bfloat16)
    with pytest.raises(PlanMismatchError, match="replaced"):
        area.exchange(tensors)
    assert torch.equal(tensors["weight"], served()["weight"])
    assert not tensors["bias"].any()


def test_given_tensors_that_cannot_be_staged_then_the_reason_names_them() -> None:
    whole = torch.zeros(4, 4)

    def why_not_staged(tensors: dict[str, torch.Tensor], budget: int) -> str:
        return ShadowNeeds.of(tensors).choose(budget)[1]

    assert why_not_staged(served(), 1000) == ""
    assert "staging_budget is 10" in why_not_staged(served(), 10)
    assert "56 bytes" in why_not_staged(served(), 10)
    assert "the memory of columns holds other values" in why_not_staged({"columns": whole[:, :2]}, 1000)
    assert "the memory of spread holds other values" in why_not_staged({"spread": whole[:1].expand(4, 4)}, 1000)
    assert why_not_staged({"all": whole, "first rows": whole[:2]}, 1000).endswith("share a part of their memory")
    assert why_not_staged({"first": whole[:2], "last": whole[2:]}, 1000) == ""


ORDERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda tensor: tensor.flatten(1).t(),
    "channels last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "permuted": lambda tensor: tensor.permute(3, 1, 0, 2),
}


@pytest.mark.parametrize("order", ORDERS)
def test_given_tensors_in_another_order_of_memory_then_they_are_staged_in_that_order(order: str) -> None:
    def of_seed(seed: int) -> torch.Tensor:
        return ORDERS[order](torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed)))

    tensors = {"weight": of_seed(1)}
    assert ShadowNeeds.of(tensors).choose(1000)[1] == ""
    area = StagingArea(tensors)
    assert area.tensors["weight"].stride() == tensors["weight"].stride()
    area.tensors["weight"].copy_(of_seed(2))
    area.exchange(tensors)
    assert torch.equal(tensors["weight"], of_seed(2))
    assert torch.equal(area.tensors["weight"], of_seed(1))


@pytest.mark.parametrize("brought", ["weight", "tied", "halves"])
def test_given_names_of_one_memory_in_several_forms_when_one_is_brought_then_all_have_it_in_their_form(
    brought: str,
) -> None:
    weight = torch.zeros(4, 4)
    tensors = {"first": torch.ones(3), "weight": weight, "tied": weight.t(), "halves": weight.view(torch.int16)}
    area = StagingArea(tensors)
    assert area.nbytes == 12 + 64
    new = torch.randn(4, 4)
    forms = {"weight": new, "tied": new.t(), "halves": new.view(torch.int16)}
    area.tensors[brought].copy_(forms[brought])
    area.exchange(tensors)
    assert all(torch.equal(tensors[name], form) for name, form in forms.items())
    assert not any(area.tensors[name].any() for name in forms)


def test_given_tensors_that_lie_as_they_did_then_what_shadows_of_them_take_is_found_once() -> None:
    """Given others, other names, or another form of the same memory, then it is found anew."""
    known, memory = KnownShadowNeeds(), torch.zeros(4, 4)
    first = known.of({"weight": memory, "bias": torch.zeros(0)})
    assert known.of({"weight": memory.view(4, 4), "bias": torch.zeros(0)}) is first
    assert (first.why_not, first.why_not_by_element, first.nbytes) == ("", "", 64)
    transposed = known.of({"weight": memory.t(), "bias": torch.zeros(0)})
    assert transposed.why_not == ""
    assert transposed.why_not_by_element.startswith("weight is not contiguous")
    assert known.of({"gate": memory.t(), "bias": torch.zeros(0)}).why_not_by_element.startswith("gate")
    assert known.of({"gate": memory[:2].t(), "bias": torch.zeros(0)}).nbytes == 32
    assert known.of({"gate": memory[:, :2], "bias": torch.zeros(0)}).why_not
    assert known.of({"gate": torch.zeros(4, 2), "bias": torch.zeros(0)}).why_not == ""
