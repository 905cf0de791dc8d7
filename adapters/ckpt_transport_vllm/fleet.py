"""Updates running vLLMs, all of them in one plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckpt_transport import Config, ConfigError
from ckpt_transport.spi import EngineFleet
from ckpt_transport_vllm.control import VllmControl
from ckpt_transport_vllm.drivers import VllmDriver, driver_for
from ckpt_transport_vllm.handle import HasCollectiveRpc, VllmHandle
from ckpt_transport_vllm.server import VllmServer

Endpoint = str | HasCollectiveRpc | VllmHandle
"""A URL, or an object that this program holds."""


class VllmFleet(EngineFleet[VllmControl]):
    """Running vLLMs: servers, and objects that this program holds.

    Args:
        endpoints: URLs, as ``http://127.0.0.1:8000``; or objects with ``collective_rpc``, as vLLM's ``LLM``, its
            ``AsyncLLM`` (made into a fleet in its event loop, and called from another thread) and actors around them.
        config: settings; by default from the environment.
        pause: what becomes of running requests: ``keep`` freezes them and goes on with them afterwards, ``wait`` lets
            them end first, ``abort`` ends them, ``none`` does not pause and only keeps forward passes from running. No
            forward pass sees two versions. With ``keep`` and ``none`` an answer may be begun by one version and ended
            by the next.
        draft: update the draft models that they speculate with, and not the models that they serve.
        patience: seconds to wait for engines that are still starting; by default ``endpoint_timeout``.

    Raises:
        ConfigError: no endpoint, one named twice, or another ``pause``; or an object that is no vLLM, or cannot hold
            requests, as ``pause`` would have it.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        config: Config | None = None,
        pause: str = "keep",
        draft: bool = False,
        patience: float | None = None,
    ) -> None:
        config = Config.given(config)
        engines = [_reach(each, config) for each in endpoints]
        handles = [each for each in engines if isinstance(each, VllmHandle)]
        for number, handle in enumerate(handles):
            handle.check_pause(pause)
            if any(other.engine == handle.engine for other in handles[:number]):
                raise ConfigError(f"{handle.name} is given twice")
        super().__init__(engines, config, pause, patience)
        self._draft = draft

    def _driver_for(self, engine: VllmControl) -> VllmDriver[Any]:
        return driver_for(engine, self._config, self._pause, self._draft)


def _reach(endpoint: Endpoint, config: Config) -> VllmControl:
    match endpoint:
        case str():
            return VllmServer(endpoint, config.api_key_file)
        case VllmHandle():
            return endpoint
        case _:
            return VllmHandle(endpoint)
