"""Given a module that is looked at again, then a walk is spared only where it would find the same names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping

import pytest
import torch

from ckpt_transport.replay import TensorSnapshot
from ckpt_transport_torch.states import state_depends_on

Change = Callable[[torch.nn.Module], object]
Make = Callable[[], torch.nn.Module]


class Remembers(torch.nn.Linear):
    """Has a say in what its state is."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}


def network() -> torch.nn.Module:
    """Two layers in a tree, a buffer that is in the state and one that is not, and a name that is bound to nothing."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False)))
    module.register_buffer("mean", torch.ones(4))
    module.register_buffer("cache", torch.ones(4), persistent=False)
    return module


def plain() -> torch.nn.Module:
    """The same without the buffer that is not in the state."""
    module = network()
    del module.cache
    return module


class Turns(torch.nn.Module):
    """Has a buffer, as what turns positions, which the layers of a model often share."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("angles", torch.ones(4))


def sharing() -> torch.nn.Module:
    """The network, with a module that both of its layers have, at different depths."""
    module = network()
    module[0].turns = module[1][0].turns = Turns()  # type: ignore[index]
    module[1].turns = Turns()  # type: ignore[index]
    return module


class Looking:
    """Looks at a module's state, and counts how often it walks through it."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self.walks = 0

    def __call__(self) -> Mapping[str, torch.Tensor]:
        self.walks += 1
        return {name: each for name, each in self._module.state_dict(keep_vars=True).items() if torch.is_tensor(each)}

    def again(self, known: TensorSnapshot | None) -> TensorSnapshot:
        fingerprint = None if known is None else known.fingerprint
        return TensorSnapshot(self._module, self, fingerprint, depends_on=state_depends_on)


def finds_what_a_walk_finds(found: TensorSnapshot, walk: Mapping[str, torch.Tensor]) -> bool:
    return list(found.tensors) == list(walk) and all(found.tensors[name] is walk[name] for name in walk)


def other_tensors(module: torch.nn.Module) -> None:
    for layer in (module[0], module[1][0]):  # type: ignore[index]
        layer.weight = torch.nn.Parameter(torch.zeros(4, 4))


def same_memory_by_another_object(module: torch.nn.Module) -> None:
    module[0].weight = torch.nn.Parameter(module[0].weight.data)  # type: ignore[index]


def swapped_names(module: torch.nn.Module) -> None:
    first, second = module[0], module[1][0]  # type: ignore[index]
    first.weight, second.weight = second.weight, first.weight


def another_name(module: torch.nn.Module) -> None:
    module[0].scale = module[0].weight  # type: ignore[index]
    del module[0].weight  # type: ignore[index]


def another_order(module: torch.nn.Module) -> None:
    table = module[0]._parameters  # type: ignore[index]
    table["weight"] = table.pop("weight")


def nothing_where_a_tensor_was(module: torch.nn.Module) -> None:
    module[0].bias = None  # type: ignore[index]


def a_tensor_where_nothing_was(module: torch.nn.Module) -> None:
    module[1][0].bias = torch.nn.Parameter(torch.ones(4))  # type: ignore[index]


def kept_in_the_state(module: torch.nn.Module) -> None:
    module._non_persistent_buffers_set ^= {"mean"}


def a_hook(module: torch.nn.Module) -> None:
    def leaves_out(module: torch.nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: object) -> None:
        del state["mean"]

    module.register_state_dict_post_hook(leaves_out)  # type: ignore[no-untyped-call]


def a_state_of_its_own(module: torch.nn.Module) -> None:
    module[0].__class__ = Remembers  # type: ignore[index]


def another_layer(module: torch.nn.Module) -> None:
    module.append(torch.nn.Linear(4, 4))  # type: ignore[operator]


def another_nesting(module: torch.nn.Module) -> None:
    module[1] = torch.nn.Linear(4, 4, bias=False)  # type: ignore[operator]


def a_module_by_two_names(module: torch.nn.Module) -> None:
    module[1] = module[0]  # type: ignore[index, operator]


def one_more_name_of_a_module(module: torch.nn.Module) -> None:
    module[0].turns = module[1].turns = Turns()  # type: ignore[index]


def another_module_by_two_names(module: torch.nn.Module) -> None:
    if hasattr(module[0], "turns"):  # type: ignore[index]
        module[1].turns, module[1][0].turns = module[1][0].turns, module[1].turns  # type: ignore[index]


CHANGES = (
    other_tensors,
    same_memory_by_another_object,
    swapped_names,
    another_name,
    another_order,
    nothing_where_a_tensor_was,
    a_tensor_where_nothing_was,
    kept_in_the_state,
    a_hook,
    a_state_of_its_own,
    another_layer,
    another_nesting,
    a_module_by_two_names,
    one_more_name_of_a_module,
    another_module_by_two_names,
)
MODULES = (network, plain, sharing)


@pytest.mark.parametrize("make", MODULES)
def test_given_a_module_that_stays_as_it_is_then_it_is_walked_through_once(make: Make) -> None:
    look = Looking(make())
    first = look.again(None)
    look.again(first)  # torch is asked for the form of all at once from here on
    walked = look.walks
    third = look.again(first)
    assert look.walks == walked
    assert third.fingerprint is first.fingerprint
    assert finds_what_a_walk_finds(third, look())
    assert not third.moved()


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("change", CHANGES)
def test_given_a_change_then_what_is_found_is_what_a_walk_through_the_state_finds(make: Make, change: Change) -> None:
    module = make()
    look = Looking(module)
    known = look.again(look.again(look.again(None)))
    change(module)
    found = look.again(known)
    assert finds_what_a_walk_finds(found, look())
    assert found.fingerprint == look.again(None).fingerprint
    assert not found.moved()


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("change", [None, *CHANGES])
def test_given_a_look_at_all_tensors_then_it_finds_the_same_after_a_change(make: Make, change: Change | None) -> None:
    module = make()
    known = None
    for _ in range(3):
        known = TensorSnapshot(module, known=None if known is None else known.fingerprint)
    assert known is not None
    if change is not None:
        change(module)
    found, fresh = TensorSnapshot(module, known=known.fingerprint), TensorSnapshot(module)
    assert finds_what_a_walk_finds(found, fresh.tensors)
    assert found.fingerprint == fresh.fingerprint


def test_given_something_else_than_a_tensor_where_one_was_then_it_is_not_found() -> None:
    module = network()
    look = Looking(module)
    known = look.again(look.again(look.again(None)))
    module._buffers["mean"] = 3.0  # type: ignore[assignment]
    found = look.again(known)
    assert "mean" not in found.tensors
    assert finds_what_a_walk_finds(found, look())


AUDITED = """
import sys
import torch
from ckpt_transport.replay import TensorSnapshot
from ckpt_transport_torch.states import state_depends_on

module = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(1000)))


def look():
    return module.state_dict(keep_vars=True)


def again(known):
    return TensorSnapshot(module, look, known, depends_on=state_depends_on)


known = again(again(again(None).fingerprint).fingerprint).fingerprint
heard = []
sys.addaudithook(lambda event, arguments: heard.append(event))
snapshot = again(known)
assert snapshot.fingerprint is known and not snapshot.moved() and snapshot.stays()
print(len(heard))
"""


def test_given_a_library_that_audits_python_then_looks_do_not_tell_it_of_each_tensor() -> None:
    ended = subprocess.run([sys.executable, "-c", AUDITED], capture_output=True, text=True, timeout=60, check=True)
    assert int(ended.stdout) < 100
