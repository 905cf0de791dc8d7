"""The example of an engine that is driven from outside, under test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ckpt_transport import Config
from ckpt_transport.spi import Fleet
from ckpt_transport.testing.engine import FleetUnderTest
from examples.engine_adapter.acme_adapter import AcmeFleet, AcmePlugin, AcmeServer
from examples.engine_adapter.acme_engine import Engine
from tests.conformance.engines.modules import REQUEST, Plain

PROMPT = REQUEST.tolist()


class AcmeUnderTest(FleetUnderTest):
    """An Acme engine with its adapter, in this process."""

    def __init__(self, config: Config) -> None:
        self._engine = Engine(Plain(1), "v1")
        self._plugin = AcmePlugin(self._engine, config)
        self.driven = AcmeServer(self._engine.url)
        self.fleet = self.make_fleet(self._engine.url, config)
        self.sinks = self.fleet.sinks()

    def make_fleet(self, url: str, config: Config) -> Fleet:
        return AcmeFleet([url], config)

    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        return Plain(version).state_dict()

    def expected(self, version: int) -> object:
        with torch.no_grad():
            return Plain(version)(REQUEST).tolist()

    def ask(self) -> object:
        found: Any = self._engine.generate(PROMPT)
        return found

    def close(self) -> None:
        self.fleet.close()
        self.driven.close()
        self._plugin.close()
        self._engine.close()
