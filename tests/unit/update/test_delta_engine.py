"""An engine that is brought what differs serves the other version, bit for bit, and goes back by the same exchange."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ckpt_transport import DeltaRefusedError, PlanMismatchError
from ckpt_transport.engine import ServedElements, digest_of_served
from ckpt_transport.planning import Delta
from ckpt_transport.update.element_maps import ElementMaps
from ckpt_transport_torch import TorchEngine
from tests.deltas import Tensors, delta_of, exchanged, staged


def net(dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(96, 80), torch.nn.ReLU(), torch.nn.Linear(80, 33)).to(dtype)
    module.register_buffer("steps", torch.arange(7))
    module.register_buffer("mask", torch.zeros(5, dtype=torch.bool))
    return module


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def bits(tensors: Tensors) -> dict[str, bytes]:
    return {name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def changed(old: Tensors, seed: int, share: float = 0.02) -> dict[str, torch.Tensor]:
    """The same tensors with other bits in some elements, NaNs and zeros of another sign among them."""
    random = torch.Generator().manual_seed(seed)
    new = {name: tensor.clone() for name, tensor in old.items()}
    for tensor in new.values():
        if tensor.dtype is torch.bool:
            tensor[torch.rand(tensor.shape, generator=random) < 0.5] ^= True
            continue
        units = tensor.view(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])
        units[torch.rand(units.shape, generator=random) < share] ^= 1
        if tensor.is_floating_point():
            tensor.view(-1)[:1] = -0.0 if tensor.view(-1)[0] == 0 else float("nan")
            tensor.view(-1)[1:2] = 0.0
    return new


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_given_a_module_when_a_delta_is_exchanged_twice_then_the_new_and_then_the_old_version_is_served(
    dtype: torch.dtype, share: float
) -> None:
    module = net(dtype)
    old = state(module)
    new = changed(old, 2, share)
    engine = TorchEngine(module)
    taking = staged(engine, *delta_of("v1", old, new, 512))
    assert bits(state(module)) == bits(old), "something was written while it was staged"
    exchanged(taking)
    assert bits(state(module)) == bits(new)
    engine.begin()
    taking.digest_left = digest_of_served(state(module))
    taking.restore()
    exchanged(taking)
    assert bits(state(module)) == bits(old)


def test_given_two_deltas_in_a_row_then_both_are_applied_and_the_map_is_made_once() -> None:
    module = net()
    old = state(module)
    engine, maps = TorchEngine(module), ElementMaps()
    made: set[int] = set()
    for seed in (3, 4, 5):
        new = changed(old, seed)
        taking = staged(engine, *delta_of("base", old, new), maps)
        made.update(map(id, maps.of(taking._deltas, engine.served_elements(), engine.device)))
        exchanged(taking)
        assert bits(state(module)) == bits(new)
        old = new
    assert len(made) == 1


def test_given_tied_names_that_lie_at_one_place_then_an_element_is_exchanged_once() -> None:
    module = net()
    module[2].bias = torch.nn.Parameter(torch.zeros(80, dtype=torch.bfloat16))
    module[0].bias = module[2].bias
    old = state(module)
    new = changed(old, 7, 0.5)
    new["2.bias"] = new["0.bias"]
    delta, brought = delta_of("v1", old, new)
    one, other = (next(each for each in delta.tensors if each.spec.name == name) for name in ("0.bias", "2.bias"))
    at_one_place = tuple(
        type(each)(each.spec, 0, one.offset, each.nbytes) if each is other else each for each in delta.tensors
    )
    with pytest.raises(DeltaRefusedError, match=r"0\.bias and 2\.bias have one memory in the engine, and two"):
        staged(TorchEngine(module), delta, brought)
    carriers = tuple(each for each in delta.carriers)
    taking = staged(TorchEngine(module), Delta("v1", at_one_place, carriers), brought)
    exchanged(taking)
    assert bits(state(module)) == bits(new)
    exchanged(taking)
    assert bits(state(module)) == bits(old)


def test_given_somebody_who_writes_to_what_is_served_then_a_delta_is_not_undone() -> None:
    module = net()
    old = state(module)
    new = changed(old, 2)
    engine = TorchEngine(module)
    taking = staged(engine, *delta_of("v1", old, new))
    exchanged(taking)
    engine.begin()
    with pytest.raises(PlanMismatchError, match="somebody else has written"):
        taking.restore()
    taking.digest_left = digest_of_served(state(module))
    taking.restore()
    module[0].weight.data.view(torch.int16)[3, 3] ^= 1
    with pytest.raises(PlanMismatchError, match="somebody else has written"):
        taking.restore()


def test_given_a_module_whose_tensors_are_replaced_while_a_delta_is_staged_then_nothing_is_written() -> None:
    module = net()
    old = state(module)
    taking = staged(TorchEngine(module), *delta_of("v1", old, changed(old, 2)))
    module[0].weight = torch.nn.Parameter(module[0].weight.detach().clone())
    with pytest.raises(PlanMismatchError, match="was replaced"):
        exchanged(taking)
    assert bits(state(module)) == bits(old)


def test_given_a_module_that_stays_as_it_was_when_it_is_held_then_a_look_is_enough() -> None:
    class Asked(TorchEngine):
        times = 0

        def served_elements(self) -> ServedElements:
            self.times += 1
            return super().served_elements()

    module = net()
    old = state(module)
    new = changed(old, 2)
    engine = Asked(module)
    taking = staged(engine, *delta_of("v1", old, new))
    before = engine.times
    exchanged(taking)
    assert engine.times == before
    assert bits(state(module)) == bits(new)
    exchanged(taking)
    assert engine.times == before + 1, "another update may have gone on, so it is asked where everything is"
    assert bits(state(module)) == bits(old)


def test_given_a_delta_against_another_version_then_it_is_refused() -> None:
    module = net()
    old = state(module)
    delta, brought = delta_of("v1", old, changed(old, 2))
    engine = TorchEngine(module)
    taking = staged(engine, delta, brought)
    with pytest.raises(PlanMismatchError, match="differs from 'v0'"):
        taking.take((Delta("v0", delta.tensors, delta.carriers),), ())


def test_given_little_memory_then_a_delta_is_refused_and_says_how_much_it_takes() -> None:
    module = net()
    old = state(module)
    with pytest.raises(
        DeltaRefusedError, match=r"a delta of [\d,]+ elements takes [\d,]+ bytes, and staging_budget is 9"
    ):
        staged(TorchEngine(module), *delta_of("v1", old, changed(old, 2)), budget=9)


def test_given_tensors_that_share_a_part_of_their_memory_then_the_engine_says_so() -> None:
    module = net()
    memory = torch.zeros(100, dtype=torch.bfloat16)
    module.register_buffer("one", memory[:60])
    module.register_buffer("other", memory[40:])
    with pytest.raises(DeltaRefusedError, match="one and other share a part of their memory"):
        TorchEngine(module).served_elements()
