"""Engines of plain modules under test, whose answers are exact: weights and inputs are whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from ckpt_transport import Config, Sink
from ckpt_transport.testing.engine import EngineUnderTest
from ckpt_transport_torch import Attachment, TorchEngine
from ckpt_transport_torch.loader_engine import LoaderEngine
from ckpt_transport_torch.module_engine import ModuleEngine

WIDTH, LAYERS = 64, 6
REQUEST = torch.arange(WIDTH, dtype=torch.float64).remainder(5)


class Plain(torch.nn.Sequential):
    """A stack of layers of known weights."""

    def __init__(self, version: int) -> None:
        super().__init__(*[torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(LAYERS)])
        weights = torch.Generator().manual_seed(version)
        for parameter in self.parameters():
            parameter.data = torch.randint(-2, 3, parameter.shape, generator=weights).double()


class Answering(torch.nn.Module):
    """A stack of layers that keeps the answers to earlier requests."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.layers = Plain(version)
        self.meanwhile: Callable[[], None] | None = None
        self.kept: dict[bytes, tuple[float, ...]] = {}

    def forward(self, request: torch.Tensor) -> tuple[float, ...]:
        key = request.numpy().tobytes()
        if key not in self.kept or self.meanwhile is not None:
            self.kept[key] = self._computed(request)
        return self.kept[key]

    def _computed(self, request: torch.Tensor) -> tuple[float, ...]:
        act, self.meanwhile = self.meanwhile, None
        with torch.no_grad():
            for number, layer in enumerate(self.layers):
                if act is not None and number == LAYERS // 2:
                    act()
                request = layer(request)
        return tuple(request.tolist())


class ModuleUnderTest(EngineUnderTest):
    """A module that is loaded by the names of its tensors, in this process."""

    def __init__(self, config: Config) -> None:
        self.model = Answering(1)
        self.attached = self.attach(config)
        self.sinks = [self.attached.address]

    def attach(self, config: Config) -> Attachment:
        engine = self.make_engine()
        return Attachment(self.model, engine, Sink(engine, "", "v1", config).start())

    def make_engine(self) -> ModuleEngine:
        return ForgettingEngine(self.model)

    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        return Answering(version).state_dict()

    def expected(self, version: int) -> object:
        return Answering(version)(REQUEST)

    def ask(self) -> object:
        return self.model(REQUEST)

    def ask_meanwhile(self, act: Callable[[], None]) -> object:
        self.model.meanwhile = act
        return self.model(REQUEST)

    def close(self) -> None:
        self.attached.close()


class ForgettingEngine(TorchEngine):
    """Forgets the answers that the module keeps."""

    def certify(self) -> None:
        super().certify()
        self._module.kept = {}  # type: ignore[assignment]


class LoaderUnderTest(ModuleUnderTest):
    """A module with a loader of its own, which takes a trainer's names for its tensors."""

    def make_engine(self) -> ModuleEngine:
        return ForgettingLoaderEngine(self.model, self._load)

    def _load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        with torch.no_grad():
            for name, tensor in tensors:
                self.model.get_parameter(name.replace("blocks", "layers")).copy_(tensor)

    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        return {name.replace("layers", "blocks"): tensor for name, tensor in super().tensors(version).items()}

    def misfit(self) -> Mapping[str, torch.Tensor]:
        return {**self.tensors(2), "blocks.0.weight": torch.zeros(3, dtype=torch.float64)}


class ForgettingLoaderEngine(LoaderEngine):
    """Forgets the answers that the module keeps."""

    def certify(self) -> None:
        super().certify()
        self._module.kept = {}  # type: ignore[assignment]
