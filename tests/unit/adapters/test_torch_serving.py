"""Given a loader, then it is recorded while its module serves, and forward passes see nothing of that."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ckpt_transport_torch.loader_engine import LoaderEngine
from tests.unit.recorded import specs_of
from tests.unit.torch_modules import Pairs, bring, holds, looks_up, net, version

Loads = Callable[[Any, str, torch.Tensor], None]


def place(module: Any, name: str) -> Any:
    return module.get_parameter(name)


def through_numpy(module: Any, name: str, tensor: torch.Tensor) -> None:
    place(module, name).detach().numpy()[...] = tensor.numpy()


def through_a_storage(module: Any, name: str, tensor: torch.Tensor) -> None:
    own = torch.empty(0).set_(place(module, name).detach().untyped_storage()).view(tensor.shape)
    own.copy_(tensor)


def by_new_data(module: Any, name: str, tensor: torch.Tensor) -> None:
    place(module, name).data = tensor.clone()


def by_a_new_parameter(module: Any, name: str, tensor: torch.Tensor) -> None:
    layer, _, own = name.rpartition(".")
    setattr(module.get_submodule(layer), own, torch.nn.Parameter(tensor.clone()))


def by_a_value(module: Any, name: str, tensor: torch.Tensor) -> None:
    place(module, name).data.copy_(tensor)
    module.largest = tensor.max().item()


def by_a_list(module: Any, name: str, tensor: torch.Tensor) -> None:
    place(module, name).data.copy_(tensor)
    module.largest = max(tensor.flatten().tolist())


def by_another_form(module: Any, name: str, tensor: torch.Tensor) -> None:
    own = place(module, name)
    if own.dim() == 2:
        own.detach_().t_()
        own.copy_(tensor.t())
        own.t_()
    else:
        own.data.copy_(tensor)


def state_of(module: Any) -> dict[str, Any]:
    tensors = {name: (id(one), one.data_ptr(), one.stride(), one.clone()) for name, one in module.named_parameters()}
    return {**tensors, "largest": module.largest}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        torch.equal(before[3], other[name][3]) and before[:3] == other[name][:3]
        for name, before in one.items()
        if name != "largest"
    ) and (one["largest"] == other["largest"])


def test_given_a_loader_that_copies_then_it_is_recorded_before_forward_passes_are_held() -> None:
    module = net()
    engine = LoaderEngine(module, looks_up(module))
    served = version(module, 0.5)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    engine.begin()
    engine.prepare(specs_of(served), None)
    assert holds(module, before)
    assert not engine.spoiled
    bring(engine, served)
    assert engine.apply_summary.startswith("recorded in")
    assert holds(module, served)


@pytest.mark.parametrize(
    "load",
    [
        through_numpy,
        through_a_storage,
        by_new_data,
        by_a_new_parameter,
        by_a_value,
        by_a_list,
        by_another_form,
    ],
)
def test_given_a_loader_that_does_what_passes_could_see_then_they_see_nothing_and_the_version_arrives(
    load: Loads,
) -> None:
    """Given such a loader, when an update is prepared, then the module is as it was; and it is loaded when held."""
    module = net()
    module.requires_grad_(False)
    module.largest = -1.0

    def loader(pairs: Pairs) -> None:
        for name, tensor in pairs:
            load(module, name, tensor)

    engine = LoaderEngine(module, loader)
    for value in (0.5, 0.7):
        served = version(module, value)
        before = state_of(module)
        engine.begin()
        engine.prepare(specs_of(served), None)
        assert same(before, state_of(module))
        assert not engine.spoiled
        bring(engine, served)
        assert holds(module, served)
        assert load is not by_a_value or module.largest == pytest.approx(value)


@pytest.mark.parametrize("loads", ["by its loader", "by name"])
def test_given_a_first_update_then_nothing_is_imported_or_recorded_while_requests_are_held(loads: str) -> None:
    """Given a process that has just started, when its module is updated, then all of that was done before the hold.

    Nor is torch's compiler imported, which takes seconds.
    """
    program = """
        import sys
        import torch
        from ckpt_transport import ParameterServer
        from ckpt_transport_torch import attach
        from tests.unit.torch_modules import holds, looks_up, net, version

        module, runs, imported, held = net(), [], [], False
        loader = looks_up(module)

        def load(pairs):
            runs.append(held)
            loader(pairs)

        def notice(event, arguments):
            if event == "import" and held:
                imported.append(arguments[0])

        by_loader = sys.argv[1] == "by its loader"
        with attach(module, loader=load if by_loader else None) as served, ParameterServer() as server:
            hold, resume = served.gate.hold, served.gate.resume

            def held_from_now():
                global held
                held = True
                return hold()

            def not_held_any_more():
                global held
                held = False
                return resume()

            served.gate.hold, served.gate.resume = held_from_now, not_held_any_more
            sys.addaudithook(notice)
            server.register("v1", tensors=version(module, 0.5))
            server.update("v1", [served.address])
        assert holds(module, version(module, 0.5))
        assert runs == [False, False, True] * by_loader, runs
        assert imported == [], imported
        assert "torch._dynamo" not in sys.modules
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), loads],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
