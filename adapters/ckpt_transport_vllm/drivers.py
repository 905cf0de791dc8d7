"""Drives a running vLLM: finds its sinks, and goes through vLLM's own life cycle where it was started for that."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ckpt_transport import Config, ConfigError, EngineError
from ckpt_transport.spi import NO_PAUSE, Driver, host_of
from ckpt_transport_vllm.control import VllmControl
from ckpt_transport_vllm.plugin import ATTACH, BACKEND, UPDATE
from ckpt_transport_vllm.replicas import in_lockstep
from ckpt_transport_vllm.reported_sinks import reported_sinks
from ckpt_transport_vllm.server import EXTENSION, VllmServer

ControlT = TypeVar("ControlT", bound=VllmControl)


class VllmDriver(Driver[ControlT]):
    """Drives one vLLM.

    Args:
        engine, config, pause: see :class:`Driver`.
        draft: whether the draft model is meant, and not the one that is served.
    """

    def __init__(self, engine: ControlT, config: Config, pause: str, draft: bool) -> None:
        super().__init__(engine, config, pause)
        self._draft = draft


class ExtensionDriver(VllmDriver[VllmControl]):
    """Through the worker extension."""

    def _find_sinks(self) -> list[str]:
        if self.engine.replicas == 1:
            return self._attach()
        return reported_sinks(self._attach, self.engine.world_size(), self._config, self.engine.is_near)

    def _attach(self, report_to: str = "") -> list[str]:
        """Have all workers open sinks. Returns the addresses of those that answer: of the first replica."""
        answers = self.engine.call_workers(
            ATTACH,
            host=host_of(self._config),
            engine=self.engine.name,
            version=self.engine.weight_version(),
            draft=self._draft,
            report_to=report_to,
        )
        for rank, answer in enumerate(answers):
            if answer["error"]:
                raise EngineError(f"rank {rank} of {self.engine.name}: {answer['error']}")
        self.keeper = answers[0]["keeper"]
        return [answer["address"] for answer in answers]

    def warm_up(self) -> None:
        for rank, answer in enumerate(self.engine.call_workers("ckpt_transport_warm_up", draft=self._draft)):
            if answer["error"]:
                raise EngineError(f"rank {rank} of {self.engine.name}: {answer['error']}")

    def _renew(self, version: str) -> bool:
        return self.engine.renew("" if self._draft else version)


class NativeDriver(VllmDriver[VllmServer]):
    """Through vLLM's own life cycle of weight transfer: init, start, update, finish."""

    def __init__(self, engine: VllmServer, config: Config, pause: str, draft: bool) -> None:
        if pause == NO_PAUSE:
            raise ConfigError(
                f"{engine.url} is updated through vLLM's weight transfer, which does not hold forward passes by "
                "itself: choose another --pause than none"
            )
        super().__init__(engine, config, pause, draft)
        self._thread = ThreadPoolExecutor(1, "ckpt-transport-vllm")
        self._updating: Future[None] | None = None
        self._started = False

    def warm_up(self) -> None:
        self._find_sinks(warm_up=True)

    def _find_sinks(self, *, warm_up: bool = False) -> list[str]:
        version = self.engine.weight_version()

        def ask(report_to: str) -> None:
            self.engine.init_native(
                report_to=report_to,
                host=host_of(self._config),
                engine=self.engine.url,
                version=version,
                warm_up=warm_up,
            )

        return reported_sinks(ask, self.engine.world_size(), self._config, self.engine.is_near)

    def begin(self) -> None:
        if UPDATE in self._own_claim.begun:
            self.engine.finish_native(None)
        self.engine.start_native(self._draft)
        self._started = True

    def pause(self) -> None:
        super().pause()
        self._updating = self._thread.submit(
            self.engine.update_native, self._config.join_timeout, self._config.update_timeout
        )

    def _renew(self, version: str) -> bool:
        self._end_update(None if self._draft else version, self._config.join_timeout)
        return self.engine.renew("")

    def _abandon(self) -> None:
        self._end_update(None, 2 * self._config.join_timeout)

    def _end_update(self, version: str | None, timeout: float) -> None:
        """Wait until the server has ended the update, if it has begun it, and have it name what it serves."""
        try:
            if self._updating is not None:
                self._updating.result(timeout)
        except TimeoutError as error:
            raise EngineError(
                f"{self.engine.url} has not ended its update within {timeout:g} s; update again, or restart it"
            ) from error
        if self._started:
            self.engine.finish_native(version)
        self._updating, self._started = None, False


def driver_for(engine: VllmControl, config: Config, pause: str, draft: bool) -> VllmDriver[Any]:
    """The driver for what ``engine`` was started with.

    That is the extension where it names that, or where it does not name our weight transfer and has loaded our plugin.

    Raises:
        EngineError: it has no way in.
        ConfigError: it cannot be updated without a pause.
    """
    if pause == NO_PAUSE and in_lockstep(engine.parallel_config):
        raise ConfigError(
            f"{engine.name} has replicas that share experts, and a forward pass of one waits for the others: choose "
            "another --pause than none"
        )
    if isinstance(engine, VllmServer):
        configuration = engine.configuration()
        if configuration["parallel_config"].get("worker_extension_cls") == EXTENSION:
            return ExtensionDriver(engine, config, pause, draft)
        if (configuration.get("weight_transfer_config") or {}).get("backend") == BACKEND:
            return NativeDriver(engine, config, pause, draft)
    if engine.has_extended_workers():
        return ExtensionDriver(engine, config, pause, draft)
    raise EngineError(
        f"{engine.name} cannot be updated: its workers have no methods of ckpt_transport; install ckpt-transport where "
        "vLLM runs, have VLLM_PLUGINS name ckpt_transport if that is set, and start it again"
    )
