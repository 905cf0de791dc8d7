"""A digest that cannot be computed ends an update at once, and says why; nothing waits for it afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer, TaintedError
from ckpt_transport.memory import divided_digest
from ckpt_transport.memory.host_digest import sums_along
from ckpt_transport_torch import attach
from tests.patience import PATIENT

Pairs = Iterable[tuple[str, torch.Tensor]]
Load = Callable[[Pairs], None]


def replayed(module: torch.nn.Module) -> Load:
    """A loader that is replayed: threads that copy compute digests of what they copy."""

    def load(pairs: Pairs) -> None:
        with torch.no_grad():
            for name, tensor in pairs:
                module.get_parameter(name).copy_(tensor)

    return load


def not_replayed(module: torch.nn.Module) -> Load:
    """A loader that looks at values, so that it has to load: workers compute digests of what it has read."""

    def load(pairs: Pairs) -> None:
        with torch.no_grad():
            for name, tensor in pairs:
                if tensor.sum().item() != 0:
                    module.get_parameter(name).copy_(tensor)

    return load


@pytest.mark.parametrize("loader", [replayed, not_replayed])
def test_given_no_memory_for_a_digest_then_the_update_ends_with_the_reason_and_the_next_one_succeeds(
    monkeypatch: pytest.MonkeyPatch, loader: Callable[[torch.nn.Module], Load]
) -> None:
    module, config = torch.nn.Linear(1024, 1024, bias=False), Config.load(**PATIENT, transport="gloo")
    failed = threading.Event()

    def no_memory(*args: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise MemoryError("no memory for a digest")
        sums_along(*args)

    with attach(module, loader=loader(module), config=config) as sink, ParameterServer(config) as server:
        tensors = {"weight": torch.randn(1024, 1024)}
        server.publish("1", tensors, [sink.address])
        monkeypatch.setattr(divided_digest, "sums_along", no_memory)
        with pytest.raises(TaintedError, match="MemoryError: no memory for a digest"):
            server.publish("2", {"weight": torch.randn(1024, 1024)}, [sink.address])
        assert failed.is_set()
        server.publish("3", tensors, [sink.address])
        assert sink.version == "3"
        assert torch.equal(module.weight, tensors["weight"])
