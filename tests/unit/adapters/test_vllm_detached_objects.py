"""Objects are copied with all that they refer to: what is done to the copies is not done to them, and is noticed."""

from __future__ import annotations

import enum
import gc
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ckpt_transport_vllm.detached_objects import DetachedObjects, NotDetachableError


class Backend(enum.Enum):
    """A choice."""

    ONE = 1


class Shape(NamedTuple):
    """Named values."""

    sizes: list[int]


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("kernel", "unset")

    def __init__(self) -> None:
        self.kernel = [1]


class Config:
    """What several methods have in common."""

    def __init__(self) -> None:
        self.names, self.slotted, self.shape = {"a": [1]}, Slotted(), Shape([2])
        self.seen, self.backend, self.ordered = {1}, Backend.ONE, OrderedDict(a=1)
        self.found: defaultdict[str, list[int]] = defaultdict(list)


class Method:
    """A quantization method."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.itself, self.called = self, self.call
        self.table = torch.zeros(2)

    def call(self) -> Config:
        return self.config


class Closing:
    """Lets something go when it ends."""

    def __del__(self) -> None:
        pass


def layer() -> Any:
    module: Any = torch.nn.Linear(2, 2)
    module.quant_method = Method(Config())
    return module


def detached(module: torch.nn.Module, shared: tuple[object, ...] = ()) -> tuple[DetachedObjects, Any]:
    objects = DetachedObjects(torch.Tensor.detach, shared)
    copied = objects.module(module, "it")
    objects.note()
    return objects, copied


def test_given_a_module_then_its_copy_has_the_same_and_refers_to_copies_of_it() -> None:
    served = layer()
    objects, copied = detached(served)
    method = copied.quant_method
    assert type(copied) is torch.nn.Linear
    assert method is not served.quant_method
    assert method.itself is method
    assert method.called() is method.config
    assert method.config is not served.quant_method.config
    assert vars(method.config).keys() == vars(served.quant_method.config).keys()
    assert method.config.names == {"a": [1]}
    assert method.config.slotted.kernel == [1]
    assert method.config.shape == Shape([2])
    assert type(method.config.shape) is Shape
    assert method.config.found["new"] == []
    assert method.config.backend is Backend.ONE
    assert objects.changed((copied,)) == "it.quant_method.config.found.new"


CHANGES: dict[str, Callable[[Any], object]] = {
    "it.quant_method.config.names.a": lambda method: method.config.names.update(a=[2]),
    "it.quant_method.config.names['a'].1": lambda method: method.config.names["a"].append(2),
    "it.quant_method.config.slotted.kernel": lambda method: setattr(method.config.slotted, "kernel", [2]),
    "it.quant_method.config.slotted.unset": lambda method: setattr(method.config.slotted, "unset", 1),
    "it.quant_method.config.shape[].1": lambda method: method.config.shape.sizes.append(1),
    "it.quant_method.config.seen": lambda method: method.config.seen.add(2),
    "it.quant_method.config.ordered.b": lambda method: method.config.ordered.update(b=2),
    "it.quant_method.config.backend": lambda method: setattr(method.called(), "backend", None),
    "it.quant_method.table.scale": lambda method: setattr(method.table, "scale", 1),
}


@pytest.mark.parametrize("where", CHANGES)
def test_given_a_copy_when_it_is_changed_then_that_is_named_and_the_original_is_as_it_was(where: str) -> None:
    served = layer()
    objects, copied = detached(served)
    assert objects.changed(()) == ""
    CHANGES[where](copied.quant_method)
    assert objects.changed((copied, copied.quant_method)) == where
    again, _ = detached(served)
    assert again.changed(()) == ""
    config = served.quant_method.config
    assert (config.names, config.slotted.kernel, config.shape) == ({"a": [1]}, [1], Shape([2]))
    assert (config.seen, config.ordered, config.backend) == ({1}, {"a": 1}, Backend.ONE)
    assert not hasattr(config.slotted, "unset")
    assert not vars(served.quant_method.table)


def test_given_what_may_change_then_its_own_attributes_may_and_nothing_that_they_refer_to() -> None:
    objects, copied = detached(layer())
    copied.quant_method.kernel = object()
    assert objects.changed((copied, copied.quant_method)) == ""
    assert objects.changed((copied,)) == "it.quant_method.kernel"


def test_given_what_is_shared_then_the_copy_refers_to_it() -> None:
    served = layer()
    _, copied = detached(served, (served.quant_method.config,))
    assert copied.quant_method.config is served.quant_method.config


OTHER = torch.nn.Linear(2, 2)
REFUSED: dict[str, Callable[[], object]] = {
    "is a module that is elsewhere in the model": lambda: [OTHER],
    "refers to a module": lambda: lambda module=OTHER: lambda: module,
    "is a module that": lambda: [partial(print, OTHER)],
    "is a Closing, which there is no copy of": Closing,
    "is a deque, which there is no copy of": lambda: [deque([1])],
    "is a ndarray, which there is no copy of": lambda: np.zeros(2),
    "is a Counted, which there is no copy of": lambda: type("Counted", (dict,), {})(),
}


@pytest.mark.parametrize("why", REFUSED)
def test_given_what_has_no_copy_then_it_is_named(why: str) -> None:
    served = layer()
    made: Any = REFUSED[why]()
    served.quant_method.kernel = made() if callable(made) else made
    with pytest.raises(NotDetachableError, match=rf"it\.quant_method\.kernel.* {why}"):
        detached(served)


def test_given_a_weak_reference_or_a_function_then_only_that_of_a_module_is_refused() -> None:
    served, config = layer(), Config()
    served.quant_method.kernel = [weakref.ref(config), lambda: config, partial(print, 1)]
    _, copied = detached(served)
    assert copied.quant_method.kernel == served.quant_method.kernel
    served.quant_method.kernel = weakref.ref(OTHER)
    with pytest.raises(NotDetachableError, match="refers to a module"):
        detached(served)


def test_given_a_function_that_was_given_the_module_beforehand_then_that_of_a_copy_was_given_the_copy() -> None:
    served = layer()
    served.rename = partial(setattr, served, "label")
    served.quant_method.kernel = partial(served.quant_method.call)
    objects, copied = detached(served)
    copied.rename("copy")
    assert (copied.label, hasattr(served, "label")) == ("copy", False)
    assert copied.quant_method.kernel() is copied.quant_method.config
    assert objects.changed(()) == "it.label"


def test_given_a_module_of_which_there_is_no_copy_then_the_memory_of_what_was_copied_is_free_at_once() -> None:
    copies: list[weakref.ref[torch.Tensor]] = []

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        made = tensor.clone()
        copies.append(weakref.ref(made))
        return made

    served = layer()
    served.weight.owner = served
    served.quant_method.kernel = OTHER
    objects = DetachedObjects(copied)
    gc.disable()
    try:
        with pytest.raises(NotDetachableError):
            objects.module(served, "it")
        objects.clear()
        assert copies
        assert not any(each() is not None for each in copies)
    finally:
        gc.enable()
