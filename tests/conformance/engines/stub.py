"""The fleet of vLLM under test, with as much of a server as it talks to."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch

from ckpt_transport import Config
from ckpt_transport.testing.engine import FleetUnderTest
from ckpt_transport_vllm import VllmFleet
from ckpt_transport_vllm.server import VllmServer
from tests.conformance.engines.modules import REQUEST, Plain
from tests.vllm_stub import StubServer

TICK_SECONDS = 0.01


class StubUnderTest(FleetUnderTest):
    """A stub of a server, which lets no request begin while it is paused."""

    def __init__(self, config: Config) -> None:
        self._server, self._closed = StubServer(config, module=Plain(1)), threading.Event()
        self.driven = VllmServer(self._server.url)
        self.fleet = VllmFleet([self._server.url], config)
        self.sinks = [self._server.attached.address]

    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        return Plain(version).state_dict()

    def expected(self, version: int) -> object:
        with torch.no_grad():
            return Plain(version)(REQUEST).tolist()

    def ask(self) -> object:
        while self._server.paused and not self._closed.wait(TICK_SECONDS):
            pass
        with torch.no_grad():
            return self._server.model(REQUEST).tolist()

    def close(self) -> None:
        self._closed.set()
        self.fleet.close()
        self.driven.close()
        self._server.close()
