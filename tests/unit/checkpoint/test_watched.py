"""What is noticed of an owner's writes to tensors that he has lent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ckpt_transport.checkpoint import Store
from ckpt_transport.checkpoint.watched import Watched
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import MemoryKind


def step(weight: torch.nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()


def in_inference_mode(weight: torch.nn.Parameter) -> None:
    with torch.inference_mode():
        weight.add_(1)


def through_a_view(weight: torch.nn.Parameter) -> None:
    weight.detach()[1:].zero_()


def many_at_once(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        torch._foreach_copy_([weight], [torch.zeros_like(weight)])


def freed(weight: torch.nn.Parameter) -> None:
    weight.untyped_storage().resize_(0)


def past_torch(weight: torch.nn.Parameter) -> None:
    weight.detach().numpy()[:] = 7


@pytest.mark.parametrize("change", [step, in_inference_mode, through_a_view, many_at_once, freed, past_torch])
def test_given_a_write_then_the_tensor_is_named(change: Callable[[torch.nn.Parameter], None]) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        (extent,) = store.lend("v1", {"before": torch.ones(3), "weight": weight, "after": torch.ones(3)}).extents
        extent.check()
        change(weight)
        with pytest.raises(CheckpointError, match="tensor 'weight' was changed or freed by its owner"):
            extent.check()


def test_given_many_tensors_that_are_written_past_torch_then_one_of_those_that_are_compared_is_named() -> None:
    tensors = {f"t{number}": torch.ones(300) for number in range(1000)} | {"empty": torch.ones(0)}
    watched = Watched(tensors)
    for tensor in tensors.values():
        tensor.data.mul_(2)
    with pytest.raises(CheckpointError, match=r"'t0' and \d+ more was changed"):
        watched.check()


def test_given_several_writes_then_the_first_name_and_their_number_are_said() -> None:
    tensors = {"a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}
    watched = Watched(tensors)
    tensors["c"].add_(1)
    tensors["b"].add_(1)
    with pytest.raises(CheckpointError, match="'b' and 1 more was changed"):
        watched.check()


def test_given_reads_and_other_tensors_that_change_then_nothing_is_said() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    with torch.inference_mode():
        uncounted = torch.ones(3)
    watched = Watched({"weight": weight, "uncounted": uncounted})
    weight.sum().backward()  # type: ignore[no-untyped-call]
    weight.clone().detach().add_(1)
    watched.check()


def test_given_registered_versions_then_they_are_as_they_were_whatever_their_owner_does() -> None:
    weight = torch.ones(4)
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        stored = store.register("v1", tensors={"a": weight})
        weight.zero_()
        stored.extents[0].check()
        assert stored.tensors()["a"].tolist() == [1, 1, 1, 1]
