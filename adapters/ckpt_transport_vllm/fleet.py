"""Updates running vLLMs, all of them in one plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckpt_transport import Config, ConfigError, FleetReport
from ckpt_transport.spi import AnyMapping, EngineFleet, Loan, Progress, Publishes, TensorPairs, Tensors
from ckpt_transport_vllm.adapter import Adapter, ServedAs
from ckpt_transport_vllm.adapter_files import factors_of
from ckpt_transport_vllm.control import VllmControl
from ckpt_transport_vllm.drivers import VllmDriver, driver_for
from ckpt_transport_vllm.handle import HasCollectiveRpc, VllmHandle
from ckpt_transport_vllm.served_adapter import ServedAdapter
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
        self._adapters: dict[ServedAs, ServedAdapter] = {}

    def publish(
        self,
        server: Publishes,
        version: str,
        tensors: Tensors | TensorPairs | Loan,
        progress: Progress | None = None,
        *,
        other_sinks: Sequence[str] = (),
        replicated: bool = False,
        mapping: AnyMapping = None,
        base: str = "",
        adapter: Adapter | None = None,
    ) -> FleetReport | None:
        """Bring a step's weights to every engine, as :meth:`EngineFleet.publish`; or an adapter of them alone.

        Args:
            server, version, tensors, progress, other_sinks, replicated, mapping, base: as those of
                :meth:`EngineFleet.publish`. They are of the weights: an adapter that is brought alone goes to the
                servers of this fleet, under the names that it has.
            adapter: of the model whose ``state_dict()`` ``tensors`` are. It is merged into the weights; or, where it
                says under which name it is served, its factors are brought alone, and no forward pass is held. An
                answer that is under way goes on with the new version of it.

        Returns: as :meth:`EngineFleet.publish`; None where an adapter is brought alone.

        Raises:
            CheckpointError: ``tensors`` have no factor of the adapter.
            ConfigError: the adapter is not there, cannot be merged, or a name is none of a file.
            EngineError: a server does not load the adapter; names it, and the cure. All serve the version before.
        """
        if adapter is None or adapter.served is None:
            rules = mapping if adapter is None else adapter.merging(mapping)
            return super().publish(
                server,
                version,
                tensors,
                progress,
                other_sinks=other_sinks,
                replicated=replicated,
                mapping=rules,
                base=base,
            )
        settings, served = adapter.config, adapter.served
        factors = factors_of(tensors, adapter.name)
        if server.rank == 0:
            self._call_guard.one(
                f"publish('{version}')",
                self._config.update_timeout,
                lambda: self._served(served).publish(version, factors, settings),
            )
        return None

    def withdraw(self, served: ServedAs) -> None:
        """Have no server serve an adapter any more that this fleet has brought.

        Raises:
            EngineError: a server does not let go of it.
        """
        self._call_guard.one(
            f"withdraw('{served.name}')", self._config.update_timeout, lambda: self._served(served).withdraw()
        )

    def _served(self, served: ServedAs) -> ServedAdapter:
        if served not in self._adapters:
            for engine in self._engines:
                if not isinstance(engine, VllmServer):
                    raise ConfigError(
                        f"{engine.name} is an object of this program, and adapters are brought alone to servers: give "
                        "its URL, or have the adapter merged, by Adapter(...) without served="
                    )
            servers = [engine for engine in self._engines if isinstance(engine, VllmServer)]
            self._adapters[served] = ServedAdapter(servers, served, self._config.update_timeout)
        return self._adapters[served]

    def close(self) -> None:
        super().close()
        for adapter in self._adapters.values():
            adapter.close()

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
