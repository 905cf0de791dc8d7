"""Deltas are decoded, located and exchanged on the GPU on which a module is served."""

from __future__ import annotations

import warnings

import pytest
import torch

from ckpt_transport.deltas import UNIT_DTYPES, locate_on_device, why_no_exchange
from ckpt_transport.deltas.sections import BLOCK_UNITS
from ckpt_transport.engine import digest_of_served
from ckpt_transport.errors import CheckpointError, PlanMismatchError
from ckpt_transport.memory.launch import has_kernels
from ckpt_transport_torch import TorchEngine
from tests.deltas import delta_of, exchanged, staged, staged_of_sources
from tests.located import BASES, by_kernels, loaded, on_host
from tests.unit.deltas.test_host_carriers import HOWS, carrying, mapped

GPU = torch.device("cuda", 0)
needs_kernels = pytest.mark.skipif(not has_kernels(), reason="needs Triton")


def test_given_a_module_on_a_gpu_when_a_delta_is_exchanged_twice_then_both_versions_are_served_in_turn() -> None:
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(512, 384), torch.nn.Linear(384, 96)).to("cuda", torch.bfloat16)
    assert why_no_exchange(torch.device("cuda")) == ""
    old = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    new = {name: tensor.clone() for name, tensor in old.items()}
    for tensor in new.values():
        tensor.view(-1).view(torch.int16)[::37] ^= 1
    engine = TorchEngine(module)
    taking = staged(engine, *delta_of("v1", old, new))
    exchanged(taking)
    assert all(torch.equal(tensor.cpu(), new[name]) for name, tensor in module.state_dict().items())
    engine.begin()
    taking.digest_left = digest_of_served(module.state_dict())
    taking.restore()
    exchanged(taking)
    assert all(torch.equal(tensor.cpu(), old[name]) for name, tensor in module.state_dict().items())


@needs_kernels
@pytest.mark.parametrize("replicas", [False, True])
def test_given_two_sources_when_their_deltas_are_exchanged_then_a_gpu_serves_what_both_bring(replicas: bool) -> None:
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(512, 384), torch.nn.Linear(384, 96)).to(GPU, torch.bfloat16)
    old = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    new = {name: tensor.clone() for name, tensor in old.items()}
    for tensor in new.values():
        tensor.view(-1).view(torch.int16)[::37] ^= 1
    of_each = [{name: new[name] for name in new if replicas or name.startswith(each)} for each in ("0", "1")]
    sources = [delta_of("v1", {name: old[name] for name in own}, own) for own in of_each]
    taking = staged_of_sources(TorchEngine(module), sources)
    exchanged(taking)
    assert all(torch.equal(tensor.cpu(), new[name]) for name, tensor in module.state_dict().items())
    assert taking.count == sum(int((new[name] != old[name]).sum()) for name in new)


@needs_kernels
@pytest.mark.parametrize("unit", UNIT_DTYPES)
@pytest.mark.parametrize("share", [0.0002, 0.01, 0.3, 1])
@pytest.mark.parametrize("most", [200_000, 1 << 30])
def test_given_loaders_of_every_kind_then_a_gpu_locates_what_the_host_locates(
    unit: int, share: float, most: int
) -> None:
    tensors = [(900, HOWS[:2]), (1, HOWS[1:3]), (1300, HOWS[2:4]), (70, HOWS[4:]), (3000, HOWS[:1])]
    groups, raw = loaded(tensors, [unit], share, most, 0, 1, GPU)
    there, _ = loaded(tensors, [unit], share, most, 0, 1)
    assert by_kernels(groups, raw, GPU) == on_host(there, raw)


@needs_kernels
def test_given_carriers_of_one_range_on_a_gpu_then_an_element_that_two_have_is_refused() -> None:
    units = 20 * BLOCK_UNITS
    places = list(range(BLOCK_UNITS + 7, units - 5, 3))
    one, other = carrying("a", 1, units, places), carrying("b", 0, units, [each + 1 for each in places])
    raw, known = {"a": one[1], "b": other[1]}, mapped(units, GPU)
    assert len(by_kernels([(known, [one[0], other[0]])], raw, GPU)) == 2 * len(places)
    other = carrying("b", 0, units, sorted({*(each + 1 for each in places), places[-3]}))
    with pytest.raises(PlanMismatchError, match="a and b carry one element twice"):
        by_kernels([(known, [one[0], other[0]])], raw | {"b": other[1]}, GPU)


@needs_kernels
def test_given_bytes_that_lie_then_a_gpu_refuses_them() -> None:
    for first, lie, message in ((0, 4, "do not add up"), (0, -1, "do not add up"), (8, 9, "do not ascend")):
        carrier, raw = carrying("a", 0, 1000, [3, 7, 500])
        raw[first:][:2].view(torch.int16).fill_(lie)
        with pytest.raises(CheckpointError, match=message):
            by_kernels([(mapped(1000, GPU), [carrier])], {"a": raw}, GPU)
    carrier, raw = carrying("a", 0, 100, list(range(0, 100, 2)))
    raw[0] = 0
    with pytest.raises(CheckpointError, match="does not have 50 bits"):
        by_kernels([(mapped(100, GPU), [carrier])], {"a": raw}, GPU)


@needs_kernels
def test_given_many_carriers_then_the_host_waits_as_often_as_for_one() -> None:
    waits = []
    for most in (1 << 30, 1 << 30, 4096):
        groups, raw = loaded([(900, ["whole"])], [2], 0.01, most, 0, 1, GPU)
        brought, bases = {name: each.to(GPU) for name, each in raw.items()}, torch.tensor(BASES, device=GPU)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                locate_on_device(groups, brought, bases)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(len([each for each in found if "synchronizing" in str(each.message)]))
    assert len(raw) > 10
    assert waits[2] == waits[1]
