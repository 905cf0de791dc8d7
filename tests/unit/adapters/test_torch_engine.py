"""Given a module, what of it an update brings."""

from __future__ import annotations

from collections import Counter

import torch

from ckpt_transport.planning import TensorSpec
from ckpt_transport_torch.engine import TorchEngine
from tests.looks import Looks
from tests.unit.recorded import apart
from tests.unit.torch_modules import assign, holds, load, net, version


class Remembers(torch.nn.Linear):
    """Keeps something in its state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        raise AssertionError("an update brings tensors")


def test_given_an_attribute_that_is_no_tensor_then_it_is_not_expected() -> None:
    engine = TorchEngine(torch.nn.Sequential(Remembers(2, 3, bias=False)))
    assert engine.expects() == (TensorSpec("0.weight", "F32", (3, 2)),)


def test_given_a_module_then_what_is_expected_is_the_same_object_until_it_changes() -> None:
    """Given that plans are known by what was expected, then it is made anew only for other names, types or shapes."""
    module = net()
    engine = TorchEngine(module)
    first = engine.expects()
    engine.begin()
    assert engine.expects() is first
    assign(module)
    engine.begin()
    assert engine.expects() is first
    module.half()
    engine.begin()
    assert engine.expects() == tuple(TensorSpec(spec.name, "F16", spec.shape) for spec in first or ())


def test_given_a_module_whose_ties_change_then_ties_are_those_of_today() -> None:
    module = net()
    engine = TorchEngine(module)
    assert engine.ties() == ()
    module.append(torch.nn.Linear(16, 16))
    module[3].weight = module[0].weight
    engine.begin()
    assert engine.ties() == (frozenset({"0.weight", "3.weight"}),)


def test_given_a_bucket_whose_pieces_lie_apart_then_each_is_read_where_it_lies() -> None:
    module = net()
    load(TorchEngine(module), version(module, 0.5), apart)
    assert holds(module, version(module, 0.5))


def test_given_a_module_that_stays_as_it_is_then_each_tensor_is_asked_for_its_address_alone() -> None:
    module = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(3)) for _ in range(1000))
    engine = TorchEngine(module)
    engine.begin()
    engine.resume()
    for step, asked in (
        (engine.begin, Counter(data_ptr=1)),
        (engine.confirm, Counter(data_ptr=1)),
        (engine.finish, Counter(data_ptr=1)),
        (engine.certify, Counter(data_ptr=1)),
        (engine.resume, Counter[str]()),
    ):
        with Looks() as looks:
            step()
        assert looks.of_each(1000) == asked


def test_given_a_staging_area_for_the_same_tensors_then_they_are_asked_for_their_addresses_alone() -> None:
    module = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(3)) for _ in range(1000))
    engine = TorchEngine(module)
    for _ in range(2):
        engine.begin()
        with Looks() as looks:
            assert engine.can_stage(1 << 30) == ""
            engine.stage()
            engine.staging_place()
        with Looks() as exchanging:
            engine.exchange()
        engine.resume()
    assert looks.of_each(1000) == Counter()
    assert exchanging.of_each(1000) == Counter(data_ptr=1)


def test_given_time_while_a_device_reads_then_tensors_are_looked_at_and_counted_there_and_not_when_all_is_in() -> None:
    module = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(3)) for _ in range(1000))
    engine = TorchEngine(module)
    engine.begin()
    engine.confirm()
    writes = [each._version for each in module]
    engine.meanwhile()
    counted = [each._version for each in module]
    for step, asked in ((engine.finish, Counter[str]()), (engine.certify, Counter(data_ptr=1))):
        with Looks() as looks:
            step()
        assert looks.of_each(1000) == asked
    assert [each._version for each in module] == counted == [count + 1 for count in writes]
    engine.resume()
