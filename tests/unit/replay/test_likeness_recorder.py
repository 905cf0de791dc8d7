"""A loader that is recorded on a likeness of a model writes to nothing that was there before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ckpt_transport.planning import TensorSpec
from ckpt_transport.replay import LikenessRecorder, SeenByPassesError, record
from tests.unit.torch_modules import Pairs

SPECS = [TensorSpec("weight", "F32", (4, 4))]
served = torch.arange(16.0).view(4, 4)

WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "a constant": lambda tensor: served.fill_(0.0),
    "through a view": lambda tensor: served[1].zero_(),
    "by an operation": lambda tensor: served.add_(1.0),
    "as its output": lambda tensor: torch.neg(torch.ones(4, 4), out=served),
    "what is loaded": lambda tensor: served.copy_(tensor),
}


def likeness() -> torch.nn.Linear:
    return torch.nn.Linear(4, 4, bias=False, device="meta")


@pytest.mark.parametrize("how", WRITES)
def test_given_a_loader_that_writes_beside_the_likeness_then_it_is_stopped_before(how: str) -> None:
    module, before = likeness(), served.clone()

    def load(pairs: Pairs) -> None:
        for _, tensor in pairs:
            WRITES[how](tensor)
            module.weight.data.copy_(tensor)

    with pytest.raises(SeenByPassesError, match="may be the model's"):
        record(module, load, SPECS, LikenessRecorder)
    assert torch.equal(served, before)


def test_given_a_loader_that_writes_to_what_it_has_made_then_it_is_recorded() -> None:
    """Given a loader that reads what is there, and fills memory of its own, then it is recorded as by any recorder."""
    module = likeness()

    def load(pairs: Pairs) -> None:
        for _, tensor in pairs:
            order = torch.zeros(4, dtype=torch.int64)
            order[1:].copy_(torch.arange(3))
            order += int(served[0, 0])
            module.weight.data[:2].copy_(tensor[2:])
            module.weight.data[2:].copy_(tensor[:2])

    found = record(module, load, SPECS, LikenessRecorder)
    assert found.layout == record(module, load, SPECS).layout
    assert len(found.layout.copies) == 2
    assert not found.layout.refused
