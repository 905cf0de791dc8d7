"""Modules that are updated, what may be done to them between updates, and an update without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.planning import PlacedBytes
from ckpt_transport_torch.module_engine import ModuleEngine
from tests.unit.recorded import Lies, buckets, specs_of, together

Change = Callable[[Any], None]
Pairs = Iterable[tuple[str, torch.Tensor]]


class Adapted(torch.nn.Module):
    """A layer with a low-rank addition."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base
        self.addition = torch.nn.Parameter(torch.zeros(2, 16))

    def forward(self, value: torch.Tensor) -> Any:
        return self.base(value)


def net() -> Any:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def looks_up(module: torch.nn.Module) -> Callable[[Pairs], None]:
    """A loader that finds tensors when it is called."""

    def load(pairs: Pairs) -> None:
        state = module.state_dict()
        for name, tensor in pairs:
            state[name].copy_(tensor)

    return load


def version(module: torch.nn.Module, value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in module.state_dict().items()}


def holds(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, tensors[name]) for name, value in module.state_dict().items())


def load(engine: ModuleEngine, tensors: dict[str, torch.Tensor], lies: Lies = together) -> None:
    """What comes between the moment when forward passes stand still and the end of a run."""
    ((raw, pieces),) = buckets(tensors, 1 << 16)
    specs = {spec.name: spec for spec in specs_of(tensors)}
    places = [PlacedBytes(specs[name], offset, at, length) for name, offset, at, length in pieces]
    engine.load(LoadedBucket("bucket", lies(raw, pieces), lambda: places))


def bring(engine: ModuleEngine, tensors: dict[str, torch.Tensor]) -> None:
    """A whole update."""
    engine.begin()
    engine.prepare(specs_of(tensors), None)
    engine.confirm()
    load(engine, tensors)
    engine.finish()
    engine.certify()
    engine.resume()


def assign(module: Any) -> None:
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)


def half(module: Any) -> None:
    module.half()


def offload(module: Any) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def another_parameter(module: Any) -> None:
    module[0].weight = torch.nn.Parameter(module[0].weight.detach().clone())


def another_layer(module: Any) -> None:
    module[2] = torch.nn.Linear(16, 4)


def shared_memory(module: Any) -> None:
    module.share_memory()


def wrapped_layer(module: Any) -> None:
    module[0] = Adapted(module[0])


def transposed(module: Any) -> None:
    module[0].weight.data = module[0].weight.data.t()


def frozen(module: Any) -> None:
    module.requires_grad_(False)


def inference(module: Any) -> None:
    with torch.inference_mode():
        assign(module)


def inference_transposed(module: Any) -> None:
    with torch.inference_mode():
        assign(module)
        transposed(module)
