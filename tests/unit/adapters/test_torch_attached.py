"""Given an attached module, what else torch does with a module stays right: copies, gradients, autocast."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import torch

from ckpt_transport import Config, ParameterServer, UsageError
from ckpt_transport_torch import attach
from tests.unit.torch_modules import holds, looks_up, net, version

Copies = Callable[[torch.nn.Module], torch.nn.Module]
Bring = Callable[[int], None]


def pickled(module: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, torch.nn.Module)
    return loaded


@pytest.fixture
def module() -> torch.nn.Module:
    made = net()
    assert isinstance(made, torch.nn.Module)
    return made


@pytest.fixture(params=["in_place", "staged", "by a loader"])
def bring(request: pytest.FixtureRequest, module: torch.nn.Module) -> Iterator[Bring]:
    """Brings a version to the attached module, where all elements are its number; versions 1 and 2 have come."""
    loader = looks_up(module) if request.param == "by a loader" else None
    config = Config.load(commit="staged" if request.param == "staged" else "in_place")
    with attach(module, loader=loader) as served, ParameterServer(config, rank=0, world_size=1) as server:

        def bring(step: int) -> None:
            server.publish(f"v{step}", version(module, step), [served.address])

        for step in (1, 2):
            bring(step)
        yield bring


@pytest.mark.parametrize("copies", [copy.deepcopy, pickled])
def test_given_a_copy_of_an_attached_module_then_it_computes_with_its_own_tensors(
    module: torch.nn.Module, copies: Copies
) -> None:
    """Given a copy, as a trainer's reference model is one, then no update changes what it computes, or holds it."""
    inputs = torch.ones(1, 16)
    with attach(module) as served, ParameterServer(rank=0, world_size=1) as server:
        reference, expected = copies(module), module(inputs)
        server.publish("v1", version(module, 0.5), [served.address])
        served.gate.hold()
        assert torch.equal(reference(inputs), expected)
        served.gate.resume()
        assert not torch.equal(module(inputs), expected)
        with attach(reference) as another:
            server.publish("v2", version(module, 0.25), [another.address])
        assert holds(reference, version(module, 0.25))
        assert holds(module, version(module, 0.5))
    assert "forward" not in vars(module)


def test_given_a_module_that_is_attached_then_no_other_sink_can_take_its_versions_back(module: torch.nn.Module) -> None:
    with closing(attach(module)), pytest.raises(UsageError, match="this Sequential is attached already; use the add"):
        attach(module)
    attach(module).close()
    assert "forward" not in vars(module)


def test_given_a_module_of_which_a_part_is_attached_then_no_other_sink_overwrites_it(module: torch.nn.Module) -> None:
    around = torch.nn.Sequential(torch.nn.ReLU(), module)
    with closing(attach(module)), pytest.raises(UsageError, match=r"1 of this Sequential is attached already; close"):
        attach(around)
    attach(around).close()


def test_given_a_part_of_an_attached_module_then_no_other_sink_overwrites_it(module: torch.nn.Module) -> None:
    with closing(attach(module)), pytest.raises(UsageError, match=r"Linear is 2 of a Sequential that is attached al"):
        attach(module[2])  # type: ignore[index]
    attach(module[2]).close()  # type: ignore[index]


def test_given_parts_of_a_module_that_are_attached_each_then_each_gets_its_own_versions(
    module: torch.nn.Module,
) -> None:
    first, _, second = module.children()
    with attach(first) as one, attach(second) as other, ParameterServer(rank=0, world_size=1) as server:
        server.publish("v1", version(first, 0.5), [one.address])
        server.publish("v2", version(second, 0.25), [other.address])
    assert holds(first, version(first, 0.5))
    assert holds(second, version(second, 0.25))


def test_given_a_pass_before_an_update_when_its_gradient_is_asked_for_then_torch_refuses_it(
    module: torch.nn.Module, bring: Bring
) -> None:
    """The weights that the pass has used are gone, so its gradient cannot be computed any more."""
    before = module(torch.ones(1, 16).requires_grad_())
    bring(3)
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        before.sum().backward()
    module(torch.ones(1, 16)).sum().backward()


def test_given_autocast_around_updates_then_each_pass_computes_with_what_is_served(
    module: torch.nn.Module, bring: Bring
) -> None:
    """Autocast keeps what it has cast, until its block ends."""
    inputs, fresh = torch.ones(1, 16), net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = [module(inputs)]
        for step in (3, 4):
            bring(step)
            answers.append(module(inputs))
    for step, answer in enumerate(answers, start=2):
        fresh.load_state_dict(version(fresh, step))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(answer, fresh(inputs))
