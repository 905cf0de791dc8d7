"""Given a module on a GPU whose tensors are replaced, then an update goes to where it computes, or fails by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import TaintedError
from ckpt_transport_torch import attach
from tests.patience import SWIFT

Change = Callable[[torch.nn.Module], None]


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)).cuda()


def away_and_back(module: torch.nn.Module) -> None:
    """Offload to the host, give the GPU's memory to somebody else, and come back."""
    for parameter in module.parameters():
        parameter.data = parameter.data.cpu()
    torch.cuda.empty_cache()
    held = torch.full((1 << 20,), 7.0, device="cuda")
    for parameter in module.parameters():
        parameter.data = parameter.data.cuda()
    del held


def half(module: torch.nn.Module) -> None:
    module.half()


def assign(module: torch.nn.Module) -> None:
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)


def to_host(module: torch.nn.Module) -> None:
    module.cpu()


def transposed(module: Any) -> None:
    module[0].weight.data = module[0].weight.data.t()


def inference(module: torch.nn.Module) -> None:
    with torch.inference_mode():
        assign(module)


def looks_up(module: torch.nn.Module) -> Callable[[Iterable[tuple[str, torch.Tensor]]], None]:
    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        state = module.state_dict()
        for name, tensor in pairs:
            state[name].copy_(tensor)

    return load


def version(module: torch.nn.Module, value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full(each.shape, value, dtype=each.dtype) for name, each in module.state_dict().items()}


def holds(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(each.cpu(), tensors[name]) for name, each in module.state_dict().items())


@pytest.mark.parametrize("loader", [None, looks_up], ids=["by name", "by a loader"])
@pytest.mark.parametrize("change", [away_and_back, half, assign, to_host, transposed, inference])
def test_given_a_module_on_a_gpu_whatever_became_of_it_then_the_new_bytes_are_where_it_computes(
    change: Change, loader: Any
) -> None:
    module = net()
    with attach(module, loader=loader and loader(module)) as served, ParameterServer(Config.load(**SWIFT)) as server:
        for number in range(3):
            server.register(f"v{number}", tensors=version(module, number + 0.5))
            server.update(f"v{number}", [served.address])
            assert (served.version, served.tainted) == (f"v{number}", "")
            assert holds(module, version(module, number + 0.5))
            change(module)


def test_given_weights_that_are_offloaded_after_an_update_then_they_leave_the_gpu() -> None:
    module = net()
    with attach(module) as served, ParameterServer(Config.load(**SWIFT)) as server:
        server.register("new", tensors=version(module, 0.5))
        server.update("new", [served.address])
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        module.cpu()
        assert before - torch.cuda.memory_allocated() >= sum(each.nbytes for each in module.parameters())


def test_given_tensors_replaced_during_an_update_then_the_sink_is_tainted_until_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = net()
    with attach(module, version="old") as served, ParameterServer(Config.load(**SWIFT)) as server:
        server.register("new", tensors=version(module, 0.5))
        engine: Any = served._sink._engine
        finish = engine.finish

        def disturbed() -> None:
            away_and_back(module)
            finish()

        with monkeypatch.context() as patch:
            patch.setattr(engine, "finish", disturbed)
            with pytest.raises(TaintedError, match="got other memory"):
                server.update("new", [served.address])
        assert served.version == "old"
        assert served.tainted
        server.update("new", [served.address])
        assert (served.version, served.tainted) == ("new", "")
        assert holds(module, version(module, 0.5))
