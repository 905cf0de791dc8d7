"""The adapter of the Acme engine: what runs inside it, and what drives it from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckpt_transport import Config, ConfigError, Sink
from ckpt_transport.spi import Driver, EngineFleet, HttpEngine, any_port, host_of
from ckpt_transport_torch import Attachment, TorchEngine
from examples.engine_adapter import acme_engine

ATTACH = "/ckpt_transport/attach"
"""The route that the plugin adds to the engine."""


# -- inside the engine ------------------------------------------------------------------------------------------------


class AcmeEngine(TorchEngine):
    """Loads tensors by their names, between two forward passes; then the engine forgets the answers that it keeps."""

    def __init__(self, engine: acme_engine.Engine) -> None:
        super().__init__(engine.model, group=engine.url, label=f"Acme at {engine.url}")
        self._engine = engine

    def certify(self) -> None:
        super().certify()
        self._engine.kept = {}


class AcmePlugin:
    """Makes an engine updatable as soon as somebody asks it to attach; it is told where its sink is."""

    def __init__(self, engine: acme_engine.Engine, config: Config | None = None) -> None:
        self._engine = engine
        self._config = config if config is not None else Config.load()
        self._attached: Attachment | None = None
        engine.plugins[ATTACH] = self._attach

    def _attach(self, asked: dict[str, Any]) -> dict[str, str]:
        """A sink on a socket of this host is enough for callers who are here; others get a port."""
        if self._attached is None:
            near = asked["host"] == host_of(self._config)
            way_in = AcmeEngine(self._engine)
            sink = Sink(way_in, "" if near else any_port(self._config.interface), self._engine.label, self._config)
            self._attached = Attachment(self._engine.model, way_in, sink.start())
        return {"address": self._attached.address}

    def close(self) -> None:
        del self._engine.plugins[ATTACH]
        if self._attached is not None:
            self._attached.close()


# -- outside ----------------------------------------------------------------------------------------------------------


class AcmeServer(HttpEngine):
    """An Acme engine at ``url``."""

    kind = "Acme"
    route_hint = "make an AcmePlugin of the engine, so that it can be updated"

    def world_size(self) -> int:
        return 1

    def weight_version(self) -> str:
        return str(self._call("GET", "/status")["label"])

    def is_paused(self) -> bool:
        return bool(self._call("GET", "/status")["paused"])

    @property
    def resume_hint(self) -> str:
        return f"POST {self.url}/resume when it may serve"

    def pause(self, mode: str, timeout: float) -> None:
        """Requests that run end first; none is lost."""
        self._call("POST", "/pause", json={"timeout": timeout}, timeout=timeout + 5.0)

    def resume(self) -> None:
        self._call("POST", "/resume")

    def label(self, version: str) -> None:
        self._call("POST", "/label", json={"label": version})

    def reset_caches(self) -> None:
        self._call("POST", "/forget")

    def attach(self, host: str) -> str:
        """Have the plugin attach; where its sink is."""
        return str(self._call("POST", ATTACH, json={"host": host})["address"])


class AcmeDriver(Driver[AcmeServer]):
    """Finds the sink of an Acme engine."""

    def _find_sinks(self) -> Sequence[str]:
        return [self.engine.attach(host_of(self._config))]

    def warm_up(self) -> None:
        """A module that is loaded by names has nothing to prepare."""


class AcmeFleet(EngineFleet[AcmeServer]):
    """Running Acme engines; ``--engine acme`` finds this class by its entry point.

    Raises:
        ConfigError: no endpoint, one named twice, another ``pause``, or a draft model is meant.
    """

    def __init__(
        self, endpoints: Sequence[str], config: Config | None = None, pause: str = "keep", draft: bool = False
    ) -> None:
        if draft:
            raise ConfigError("an Acme engine has no draft model")
        config = config if config is not None else Config.load()
        super().__init__([AcmeServer(url, config.api_key_file) for url in endpoints], config, pause)

    def _driver_for(self, engine: AcmeServer) -> AcmeDriver:
        return AcmeDriver(engine, self._config, self._pause)
