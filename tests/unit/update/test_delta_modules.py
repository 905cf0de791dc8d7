"""Modules that take their tensors whole are staged beside a delta, exchanged with it, and taken back with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
import torch

from ckpt_transport import DeltaRefusedError, LoadedBucket, PlanMismatchError
from ckpt_transport.deltas import HostExchange
from ckpt_transport.engine import digest_of_elements
from ckpt_transport.errors import UsageError
from ckpt_transport.planning import Delta, PlacedBytes
from ckpt_transport.update.delta_engine import DeltaEngine
from ckpt_transport.update.element_maps import ElementMaps
from ckpt_transport_torch.loader_engine import LoaderEngine
from tests import computed
from tests.deltas import PLENTY, Tensors, delta_of, exchanged, pool_of, spec_of, staged

GATE = ("gate.scale", "gate.weight")


def changed(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Other values at each fiftieth place."""
    new = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in new.values():
        tensor.view(-1)[::50] *= 1.5
    return new


def serving(tensors: Tensors) -> tuple[computed.Rank, LoaderEngine]:
    """An engine that serves a version, and whose loader was replayed."""
    module = computed.rank_of(0)
    engine = LoaderEngine(module, computed.loader(module))
    raw, placed = pool_of(tensors)
    places = [PlacedBytes(each.spec, 0, each.offset, each.nbytes) for each in placed]
    engine.begin()
    engine.prepare([each.spec for each in placed], None)
    engine.confirm()
    engine.load(LoadedBucket("all", raw, lambda: places))
    engine.finish()
    engine.certify()
    engine.resume()
    return module, engine


def holds(module: torch.nn.Module, tensors: Tensors) -> bool:
    expected = computed.served_of(dict(tensors))
    return all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_given_a_computed_module_then_it_is_named_with_its_tensors_and_why() -> None:
    module, engine = serving(computed.weights_of(1))
    elements = engine.served_elements()
    assert [(each.name, set(each.tensors)) for each in elements.whole] == [("gate", set(GATE))]
    assert elements.whole[0].reason == "the loader computes gate.weight of gate.weight"
    assert set(elements.tensors) == {"up", "down"}
    assert set(elements.whole_served) == set(GATE)
    assert elements.whole_nbytes == sum(each.nbytes for each in module.gate.parameters())


def test_given_a_delta_with_a_module_when_it_is_exchanged_then_both_are_served_and_both_are_taken_back() -> None:
    old = computed.weights_of(1)
    module, engine = serving(old)
    new = changed(old)
    taking = staged(engine, *delta_of("v1", old, new, whole=GATE))
    assert holds(module, old), "something was written while it was staged"
    for expected in (new, old, new):
        exchanged(taking)
        assert holds(module, expected)
        taking.digest_left = digest_of_elements(engine.served_elements())
        engine.begin()
        taking.restore()
    kept = taking.nbytes
    taking.drop_staged()
    assert kept - taking.nbytes == engine.served_elements().whole_nbytes


def test_given_an_exchange_of_elements_that_fails_then_the_module_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = computed.weights_of(1)
    module, engine = serving(old)
    taking = staged(engine, *delta_of("v1", old, changed(old), whole=GATE))
    monkeypatch.setattr(HostExchange, "exchange", raises(UsageError("broken")))
    with pytest.raises(UsageError, match="broken"):
        exchanged(taking)
    assert holds(module, old)


def raises(error: Exception) -> Callable[..., None]:
    def act(*_: Any) -> None:
        raise error

    return act


def test_given_a_module_that_got_other_memory_since_then_nothing_is_exchanged() -> None:
    old = computed.weights_of(1)
    module, engine = serving(old)
    taking = staged(engine, *delta_of("v1", old, changed(old), whole=GATE))
    module.gate.weight.data = module.gate.weight.data.clone()
    with pytest.raises(PlanMismatchError, match="takes no delta any more"):
        exchanged(taking)
    assert holds(module, old)


@pytest.mark.parametrize("lacking", GATE)
def test_given_a_tensor_of_the_module_that_does_not_come_then_the_delta_is_refused_by_its_name(lacking: str) -> None:
    old = computed.weights_of(1)
    _, engine = serving(old)
    whole = [name for name in GATE if name != lacking]
    with pytest.raises(DeltaRefusedError, match=f"{lacking} comes in part, and the engine takes it whole"):
        staged(engine, *delta_of("v1", old, changed(old), whole=whole))


def test_given_no_room_for_the_module_then_the_delta_is_refused() -> None:
    old = computed.weights_of(1)
    _, engine = serving(old)
    room = engine.served_elements().whole_nbytes
    with pytest.raises(DeltaRefusedError, match="staging_budget"):
        staged(engine, *delta_of("v1", old, changed(old), whole=GATE), budget=room)


def twice(old: Tensors, new: Tensors, other: Tensors) -> tuple[tuple[Delta, ...], dict[str, torch.Tensor]]:
    """What two sources bring that hold the same tensors."""
    deltas: list[Delta] = []
    brought: dict[str, torch.Tensor] = {}
    for number, values in enumerate((new, other)):
        delta, raw = delta_of("v1", old, values, whole=GATE)
        carriers = [renamed(each, f"{number}.{each.name}") for each in delta.carriers]
        deltas.append(Delta("v1", delta.tensors, tuple(carriers)))
        brought |= {f"{number}.{name}": each for name, each in raw.items()}
    return tuple(deltas), brought


def renamed(carrier: Any, name: str) -> Any:
    return msgspec.structs.replace(carrier, name=name)


def taken(engine: LoaderEngine, deltas: Iterable[Delta], brought: Tensors) -> Any:
    engine.begin()
    taking = DeltaEngine(engine, "v1", ElementMaps())
    assert not taking.can_stage(PLENTY)
    specs = [spec_of(name, tensor) for name, tensor in brought.items()]
    taking.take(tuple(deltas), specs)
    taking.prepare(specs, None)
    for spec, raw in zip(specs, brought.values(), strict=True):
        taking.load(LoadedBucket(spec, raw, lambda spec=spec: [PlacedBytes(spec, 0, 0, spec.nbytes)]))  # type: ignore[misc]
    taking.finish()
    return taking


def test_given_two_sources_with_the_same_tensors_then_the_module_is_loaded_once() -> None:
    old = computed.weights_of(1)
    module, engine = serving(old)
    new = changed(old)
    exchanged(taken(engine, *twice(old, new, new)))
    assert holds(module, new)


def test_given_two_sources_that_differ_in_one_value_then_the_delta_is_refused() -> None:
    old = computed.weights_of(1)
    _, engine = serving(old)
    new, other = changed(old), changed(old)
    other["gate.weight"][3, 4] += 1
    with pytest.raises(DeltaRefusedError, match=r"two sources bring different values of gate\.weight"):
        taken(engine, *twice(old, new, other))
