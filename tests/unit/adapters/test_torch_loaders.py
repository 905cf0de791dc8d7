"""Given loaders that keep tensors, then those that miss the module are refused before the first byte."""

from __future__ import annotations

import copy

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Sink
from ckpt_transport.errors import TaintedError, UnwritableError, UpdateAbortedError
from ckpt_transport_torch import attach
from ckpt_transport_torch.loader_engine import LoaderEngine
from tests.patience import PATIENT
from tests.unit.recorded import specs_of
from tests.unit.torch_modules import Pairs, assign, bring, holds, load, looks_up, net, version


def test_given_a_loader_that_kept_old_tensors_then_it_is_refused_before_the_first_byte() -> None:
    """Given a loader made with a state_dict(), when the module gets other tensors, then no version is claimed."""
    module = net()
    state = module.state_dict()

    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            state[name].copy_(tensor)

    with attach(module, loader=load, version="old") as served, ParameterServer(Config.load(**PATIENT)) as server:
        server.register("v1", tensors=version(module, 0.5))
        server.update("v1", [served.address])
        assign(module)
        before = copy.deepcopy(module.state_dict())
        server.register("v2", tensors=version(module, 0.7))
        with pytest.raises(UpdateAbortedError, match=r"0\.weight cannot be updated.*look tensors up when the loader"):
            server.update("v2", [served.address])
        assert (served.version, served.tainted) == ("v1", "")
        assert holds(module, before)


def test_given_a_loader_that_renames_and_kept_old_tensors_then_it_is_refused_too() -> None:
    module = net()
    weight = module[0].weight.detach()

    def load(pairs: Pairs) -> None:
        for _, tensor in pairs:
            weight.copy_(tensor.t())

    engine = LoaderEngine(module, load)
    bring(engine, {"hidden": torch.full((16, 16), 0.5)})
    assign(module)
    with pytest.raises(UnwritableError, match=r"0\.weight cannot be updated: the loader writes to memory that it had"):
        bring(engine, {"hidden": torch.full((16, 16), 0.7)})


def test_given_a_loader_that_kept_tensors_from_before_attach_then_it_is_refused_by_their_names() -> None:
    module = net()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            state[name].copy_(tensor)

    with pytest.raises(UnwritableError, match=r"0\.weight cannot be updated: the loader writes to other memory"):
        bring(LoaderEngine(module, load), version(module, 0.5))


def test_given_a_loader_then_it_may_keep_copies_beside_the_module() -> None:
    module = net()
    copies = {name: torch.empty_like(tensor) for name, tensor in module.state_dict().items()}

    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            module.state_dict()[name].copy_(tensor)
            copies[name].copy_(tensor)

    bring(LoaderEngine(module, load), version(module, 0.5))
    assert holds(module, version(module, 0.5))
    assert holds(module, copies)


def test_given_a_buffer_that_no_version_brings_then_versions_are_staged_and_it_stays() -> None:
    """Given a buffer that its owner computes, as of positions, then a staged version needs no memory for it."""
    module = net()
    module.register_buffer("positions", torch.arange(3.0), persistent=False)
    first, second, third = (version(module, value) for value in (0.5, 0.7, 0.9))
    engine = LoaderEngine(module, looks_up(module))
    bring(engine, first)
    bring(engine, second)
    engine.begin()
    engine.prepare(specs_of(third), None)
    assert engine.can_stage(1 << 20) == ""
    engine.stage()
    load(engine, third)
    engine.finish()
    assert holds(module, second)
    engine.hold()
    engine.confirm()
    engine.exchange()
    engine.certify()
    engine.resume()
    assert holds(module, third)
    assert torch.equal(module.positions, torch.arange(3.0))


def test_given_a_loader_then_it_may_replace_tensors_itself() -> None:
    """Given a loader that gives the module new tensors, then what it gave is what is compared from then on."""
    module = net()

    def load(pairs: Pairs) -> None:
        module.load_state_dict({name: tensor.clone() for name, tensor in pairs}, strict=False, assign=True)

    engine = LoaderEngine(module, load)
    for value in (0.5, 0.7):
        bring(engine, version(module, value))
        assert holds(module, version(module, value))
        assert "is bound to another tensor by the loader" in engine.apply_summary


def test_given_a_loader_that_writes_past_torch_then_what_recording_it_wrote_is_never_served() -> None:
    """Given one that writes through NumPy, when an update ends before the first byte, then nothing is served."""
    module = net()

    def load(pairs: Pairs) -> None:
        state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        for name, tensor in pairs:
            state[name][...] = tensor.numpy()

    def give_up() -> None:
        raise RuntimeError("no room")

    class GivesUp(LoaderEngine):
        def confirm(self) -> None:
            super().confirm()
            give_up()

    engine = GivesUp(module, load)
    sink = Sink(engine, version="old").start()
    try:
        with ParameterServer() as server:
            server.register("v1", tensors=version(module, 0.5))
            with pytest.raises(TaintedError, match="no room"):
                server.update("v1", [sink.address])
            assert sink.tainted
            with pytest.raises(TaintedError), engine.gate.forward_pass():
                pass
    finally:
        sink.close()


def test_given_a_loader_that_writes_past_torch_then_it_loads_every_version_itself() -> None:
    module = net()

    def load(pairs: Pairs) -> None:
        state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        for name, tensor in pairs:
            state[name][...] = tensor.numpy()

    with attach(module, loader=load, version="old") as served, ParameterServer() as server:
        for number in (0.5, 0.7):
            server.register(str(number), tensors=version(module, number))
            server.update(str(number), [served.address])
            assert served.version == str(number)
            assert holds(module, version(module, number))
