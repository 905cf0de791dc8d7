"""A staging area takes a version in beside what is served, and holds the version before after the exchange."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.engine import ShadowNeeds, StagingArea
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
    assert "not contiguous" in why_not_staged({"columns": whole[:, :2]}, 1000)
    assert why_not_staged({"all": whole, "first rows": whole[:2]}, 1000).endswith("share a part of their memory")
    assert why_not_staged({"first": whole[:2], "last": whole[2:]}, 1000) == ""
