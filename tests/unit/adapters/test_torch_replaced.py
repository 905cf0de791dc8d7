"""Given a module whose tensors are not what they were, then an update goes to where it computes, or fails by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ckpt_transport import Config, ParameterServer, Sink
from ckpt_transport.errors import PlanMismatchError, TaintedError, UpdateError
from ckpt_transport_torch import attach
from ckpt_transport_torch.attach import Attachment
from ckpt_transport_torch.engine import TorchEngine
from ckpt_transport_torch.loader_engine import LoaderEngine
from ckpt_transport_torch.module_engine import ModuleEngine
from tests.patience import PATIENT
from tests.unit.recorded import specs_of
from tests.unit.torch_modules import (
    Change,
    another_layer,
    another_parameter,
    assign,
    bring,
    frozen,
    half,
    holds,
    inference,
    inference_transposed,
    load,
    looks_up,
    net,
    offload,
    shared_memory,
    transposed,
    version,
    wrapped_layer,
)

weakly: Any = StorageWeakRef
CHANGES = (
    assign,
    half,
    offload,
    another_parameter,
    another_layer,
    shared_memory,
    wrapped_layer,
    transposed,
    frozen,
    inference,
    inference_transposed,
)


@pytest.mark.parametrize("by_loader", [False, True], ids=["by name", "by a loader"])
@pytest.mark.parametrize("change", CHANGES)
def test_given_a_module_whatever_became_of_it_then_the_new_bytes_are_where_it_computes(
    change: Change, by_loader: bool
) -> None:
    """Given a module that is changed before the first update, and again before the second, then each is in."""
    module = net()
    engine = LoaderEngine(module, looks_up(module)) if by_loader else TorchEngine(module)
    for value in (0.5, 0.7):
        change(module)
        bring(engine, version(module, value))
        assert holds(module, version(module, value))


@pytest.mark.parametrize("loader", [None, looks_up], ids=["by name", "by a loader"])
def test_given_a_module_with_other_tensors_then_a_server_updates_it(loader: Any) -> None:
    module = net()
    with attach(module, loader=loader and loader(module)) as served, ParameterServer(Config.load(**PATIENT)) as server:
        for number, change in enumerate((assign, offload, half)):
            change(module)
            server.register(f"v{number}", tensors=version(module, number + 0.5))
            server.update(f"v{number}", [served.address])
            assert served.version == f"v{number}"
            assert holds(module, version(module, number + 0.5))


def test_given_a_module_between_updates_then_no_tensor_of_it_is_kept() -> None:
    """Given an update that has ended, when the owner gives weights up, then their memory is free."""
    for by_loader in (False, True):
        module = net()
        engine = LoaderEngine(module, looks_up(module)) if by_loader else TorchEngine(module)
        for value in (0.5, 0.7):
            bring(engine, version(module, value))
            old = [weakly(tensor.untyped_storage()) for tensor in module.state_dict().values()]
            offload(module)
            assert all(storage.expired() for storage in old)


# -- tensors that are replaced during one -----------------------------------------------------------------------------


@pytest.mark.parametrize("change", [assign, offload])
def test_given_tensors_replaced_before_forward_passes_stand_still_then_they_are_found(change: Change) -> None:
    module = net()
    engine = TorchEngine(module)
    engine.begin()
    change(module)
    engine.confirm()
    load(engine, version(module, 0.5))
    engine.finish()
    engine.certify()
    assert holds(module, version(module, 0.5))


@pytest.mark.parametrize("change", [half, wrapped_layer, transposed])
def test_given_a_module_that_needs_something_else_than_it_said_then_it_is_not_touched(change: Change) -> None:
    module = net()
    engine = TorchEngine(module)
    engine.begin()
    change(module)
    with pytest.raises(PlanMismatchError, match="has changed since it said what it needs"):
        engine.confirm()


@pytest.mark.parametrize("step", ["finish", "certify"])
@pytest.mark.parametrize("by_loader", [False, True], ids=["by name", "by a loader"])
@pytest.mark.parametrize("change", [assign, half, offload, another_parameter, another_layer, wrapped_layer])
def test_given_tensors_replaced_while_bytes_come_then_they_are_found_before_anything_is_served(
    change: Change, by_loader: bool, step: str
) -> None:
    """Given a module whose tensors are replaced during an update, then it fails by name, and the next one does not."""
    module = net()
    engine = LoaderEngine(module, looks_up(module)) if by_loader else TorchEngine(module)
    tensors = version(module, 0.5)
    engine.begin()
    engine.prepare(specs_of(tensors), None)
    engine.confirm()
    load(engine, tensors)
    if step == "certify":
        engine.finish()
    change(module)
    with pytest.raises(UpdateError, match=r"^(0|2)\..* got other memory while an update was applied"):
        getattr(engine, step)()
    engine.taint("a mix")
    bring(engine, version(module, 0.7))
    assert holds(module, version(module, 0.7))


@pytest.mark.parametrize("late", [False, True], ids=["before the look ahead", "after it"])
@pytest.mark.parametrize("change", [assign, half, offload, another_parameter, another_layer, wrapped_layer])
def test_given_tensors_replaced_around_a_look_ahead_then_they_are_found_before_anything_is_served(
    change: Change, late: bool
) -> None:
    module = net()
    engine = TorchEngine(module)
    engine.begin()
    engine.confirm()
    load(engine, version(module, 0.5))
    if not late:
        change(module)
    engine.meanwhile()
    if late:
        engine.finish()
        change(module)
    with pytest.raises(UpdateError, match=r"^(0|2)\..* got other memory while an update was applied"):
        (engine.certify if late else engine.finish)()


@contextmanager
def serving(module: torch.nn.Module, engine: ModuleEngine) -> Iterator[Attachment]:
    sink = Sink(engine, "", "old", Config.load(**PATIENT))
    with Attachment(module, engine, sink) as served:
        sink.start()
        yield served


@pytest.mark.parametrize("when", ["finish", "_committed"])
def test_given_a_sink_whose_tensors_were_replaced_during_an_update_then_it_does_not_say_that_it_serves_it(
    when: str,
) -> None:
    """Given tensors replaced before the commit, or after it, then the sink is tainted, and the next update cures it."""
    module = net()
    engine = TorchEngine(module)
    with serving(module, engine) as served, ParameterServer(Config.load(**PATIENT)) as server:
        target: Any = engine if when == "finish" else served._sink
        undisturbed = getattr(target, when)

        def disturbed() -> None:
            offload(module)
            undisturbed()

        setattr(target, when, disturbed)
        server.register("new", tensors=version(module, 0.5))
        with pytest.raises(TaintedError, match="got other memory"):
            server.update("new", [served.address])
        assert served.version == "old"
        assert "got other memory" in served.tainted
        with pytest.raises(TaintedError):
            module(torch.zeros(1, 16))
        setattr(target, when, undisturbed)
        server.update("new", [served.address])
        assert (served.version, served.tainted) == ("new", "")
        assert holds(module, version(module, 0.5))
