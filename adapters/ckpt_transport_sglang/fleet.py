"""Updates running SGLang servers, all of them in one plan."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_transport import Config, ConfigError
from ckpt_transport.spi import Driver, EngineFleet, host_of
from ckpt_transport_sglang.server import SglangServer


class SglangFleet(EngineFleet[SglangServer]):
    """Running SGLang servers.

    Args:
        endpoints: their URLs, as ``http://127.0.0.1:30000``.
        config: settings; by default from the environment.
        pause: what becomes of running requests: ``keep`` freezes them and goes on with them afterwards, ``retract``
            takes them back to where requests wait, ``abort`` ends them, ``none`` does not pause and only keeps batches
            from running. No batch sees two versions. What was computed of a request by old weights is computed again.
        draft: must be False: draft models are not updated.
        patience: seconds to wait for engines that are still starting; by default ``endpoint_timeout``.

    Raises:
        ConfigError: no endpoint, one named twice, another ``pause``, or ``draft``.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        config: Config | None = None,
        pause: str = "keep",
        draft: bool = False,
        patience: float | None = None,
    ) -> None:
        if draft:
            raise ConfigError("draft models of SGLang are not updated: restart it to change what it speculates with")
        config = Config.given(config)
        servers = [SglangServer(url, config.api_key_file) for url in endpoints]
        super().__init__(servers, config, pause, patience)

    def _driver_for(self, engine: SglangServer) -> Driver[SglangServer]:
        return SglangDriver(engine, self._config, self._pause)


class SglangDriver(Driver[SglangServer]):
    """Drives one server, through what the plugin has added to it."""

    def _find_sinks(self) -> list[str]:
        return self.engine.attach(host_of(self._config))

    def _renew_and_resume(self, version: str) -> bool:
        return self.engine.renew_and_resume(version)

    def warm_up(self) -> None:
        self.engine.call_ranks("warm_up")
