"""Updates running vLLM servers, all of them in one plan."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_transport import Config
from ckpt_transport.spi import EngineFleet
from ckpt_transport_vllm.drivers import VllmDriver, driver_for
from ckpt_transport_vllm.server import VllmServer


class VllmFleet(EngineFleet[VllmServer]):
    """Running vLLM servers.

    Args:
        endpoints: their URLs, as ``http://127.0.0.1:8000``.
        config: settings; by default from the environment.
        pause: what becomes of running requests: ``keep`` freezes them and goes on with them afterwards, ``wait`` lets
            them end first, ``abort`` ends them, ``none`` does not pause and only keeps forward passes from running. No
            forward pass sees two versions. With ``keep`` and ``none`` an answer may be begun by one version and ended
            by the next.
        draft: update the draft models that they speculate with, and not the models that they serve.
        patience: seconds to wait for engines that are still starting; by default ``endpoint_timeout``.

    Raises:
        ConfigError: no endpoint, one named twice, or another ``pause``.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        config: Config | None = None,
        pause: str = "keep",
        draft: bool = False,
        patience: float | None = None,
    ) -> None:
        config = config if config is not None else Config.load()
        super().__init__([VllmServer(url, config.api_key_file) for url in endpoints], config, pause, patience)
        self._draft = draft

    def _driver_for(self, engine: VllmServer) -> VllmDriver:
        return driver_for(engine, self._config, self._pause, self._draft)
