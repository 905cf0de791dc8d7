"""Loader and replay load invented tensors, and are compared, while nothing else is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ckpt_transport import dtypes
from ckpt_transport.planning import TensorSpec
from ckpt_transport.replay import Rehearsal, SeenByPassesError, of_targets, record, rehearsal
from ckpt_transport.replay.bucket_copy_plan import BucketCopyPlans
from ckpt_transport.replay.invented_tensors import InventedTensors
from ckpt_transport.replay.writable_memory import WritesApart
from tests.unit.torch_modules import Pairs

SPECS = [TensorSpec("a", "F32", (2, 4)), TensorSpec("b", "F32", (2, 4)), TensorSpec("c", "F32", (4,))]
CPU = torch.device("cpu")
served = torch.arange(4.0)

Write = Callable[[torch.Tensor, torch.Tensor], object]


class Likeness(torch.nn.Module):
    """Two tensors are loaded into the halves of one parameter, and a third beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.both = torch.nn.Parameter(torch.empty(4, 4, device="meta"))
        self.bias = torch.nn.Parameter(torch.empty(4, device="meta"))

    def loader(self, write: Write) -> Callable[[Pairs], None]:
        halves = {"a": slice(0, 2), "b": slice(2, 4)}

        def load(pairs: Pairs) -> None:
            for name, tensor in pairs:
                write(self.both.data[halves[name]] if name in halves else self.bias.data, tensor)

        return load


def differing_of(write: Write, elsewhere: bool = True) -> list[str]:
    """The names of what is not replayed as it is loaded, of a loader that writes so. All of it is rehearsed but the
    bias, which is without memory."""
    module = Likeness()
    load = module.loader(write)
    plans = BucketCopyPlans(record(module, load, SPECS).layout)
    names = [target.name for target in plans.layout.targets]
    number, bias = names.index("both"), module.bias
    module.both = torch.nn.Parameter(torch.empty(4, 4))
    rehearsed = Rehearsal(of_targets(plans, range(len(SPECS)), {number}), {number}, CPU)
    steps = rehearsed.steps({number: module.both.detach()}, [bias] if elsewhere else [], load)
    for _ in steps:
        pass
    return [names[each] for each in rehearsed.differing]


def copies(to: torch.Tensor, of: torch.Tensor) -> None:
    to.copy_(of)


def test_given_a_loader_that_copies_then_its_replay_leaves_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert differing_of(copies) == []
    monkeypatch.setattr(rehearsal, "BUCKET_BYTES", 1)
    assert differing_of(copies) == [], "with each tensor in a bucket of its own"


def test_given_a_loader_that_leaves_a_row_out_then_that_is_no_difference() -> None:
    assert differing_of(lambda to, of: to[:1].copy_(of[:1])) == []


def test_given_a_loader_that_looks_where_torch_does_not_see_it_then_the_difference_is_found() -> None:
    assert differing_of(lambda to, of: to.copy_(-of if of.numpy().any() else of)) == ["both"]
    assert differing_of(lambda to, of: None if of.numpy().any() else to.copy_(of)) == ["both"]


@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20])
def test_given_a_loader_that_keeps_a_tensor_until_another_has_come_then_it_is_replayed_as_it_is_loaded(
    bucket_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def write(to: torch.Tensor, of: torch.Tensor) -> None:
        kept.append((to, of))
        if to.dim() == 1 or len(kept) == 2:
            for place, tensor in kept:
                place.copy_(tensor)
            kept.clear()

    monkeypatch.setattr(rehearsal, "BUCKET_BYTES", bucket_bytes)
    assert differing_of(write) == []


def test_given_a_loader_that_writes_to_what_is_served_then_it_is_stopped_before() -> None:
    before = served.clone()

    def write(to: torch.Tensor, of: torch.Tensor) -> None:
        to.copy_(of)
        if of.numpy().any():
            served.add_(1.0)

    with pytest.raises(SeenByPassesError, match="may be the model's"):
        differing_of(write)
    assert torch.equal(served, before)


def test_given_a_loader_that_writes_to_a_module_that_nothing_is_known_to_go_to_then_it_is_stopped() -> None:
    module = Likeness()
    with pytest.raises(SeenByPassesError), WritesApart([module.both]):
        module.bias.data.zero_()


def test_given_a_loader_that_fills_what_it_has_made_then_it_goes_on() -> None:
    def write(to: torch.Tensor, of: torch.Tensor) -> None:
        made = torch.zeros(of.shape)
        made.copy_(of)
        to.copy_(made)

    assert differing_of(write) == []


def test_given_a_loader_that_looks_at_a_buffer_then_other_memory_for_it_has_what_it_saw() -> None:
    """Given another that it does not look at, then that is not read, as its memory may be gone."""
    module, rows = Likeness(), torch.tensor([[9, 9], [2, 3], [0, 1]])
    order, passed = rows[1:], torch.arange(4)
    module.register_buffer("order", order)
    module.register_buffer("passed", passed)

    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            if name != "c":
                first = int(order[int(name == "b"), 0])
                module.both.data[first : first + 2].copy_(tensor)

    recording = record(module, load, SPECS)
    assert len(recording.guards) == 1
    rows.zero_()
    assert torch.equal(recording.in_other_memory(order), torch.tensor([[2, 3], [0, 1]]))
    other = recording.in_other_memory(passed)
    assert (other.shape, other.dtype) == (passed.shape, passed.dtype)
    assert other.data_ptr() != passed.data_ptr()


@pytest.mark.parametrize("dtype", sorted(dtypes.TORCH))
def test_given_a_type_then_invented_tensors_are_finite_in_it_and_the_same_each_time(dtype: str) -> None:
    spec, state = TensorSpec("it", dtype, (64, 32)), torch.get_rng_state()
    first, second = ([_bytes(bucket.raw) for bucket in InventedTensors([spec], 1, CPU)] for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state), "what is served may draw of it"
    (bucket,) = InventedTensors([spec], 1, CPU)
    (tensor,) = (piece.tensor() for piece in bucket)
    if dtype == "BOOL":
        assert set(_bytes(tensor.view(torch.uint8))) == {0, 1}
    else:
        assert len(set(_bytes(bucket.raw))) >= 64
    if tensor.dtype.is_complex or (tensor.dtype.is_floating_point and dtype != "F4"):
        assert tensor.to(torch.complex128).isfinite().all()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).numpy().tobytes()
