"""Drives a running server: finds its sinks, and does what must be done before and after an update."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import urlsplit

from ckpt_transport import Config, ConfigError, EngineError
from ckpt_transport.spi import EngineClaim, Here, any_port, host_name, is_loopback, open_mailbox
from ckpt_transport_vllm.plugin import BACKEND, UPDATE
from ckpt_transport_vllm.server import EXTENSION, VllmServer

NO_PAUSE = "none"
PAUSE = "pause"
"""What is noted at a sink while a server is paused for an update."""
REPORT_SECONDS = 2.0
"""How long workers have to say where their sinks are before they are asked again."""
STUCK_SECONDS = 5.0
"""How long a server may take to pause that has a forward pass waiting."""
TICK_SECONDS = 0.1
PAUSES = ("keep", "wait", "abort", NO_PAUSE)


class Driver(ABC):
    """Drives one server through one update after another.

    In each: :meth:`find`, :meth:`take`, :meth:`begin`, :meth:`pause`, :meth:`serve` or :meth:`give_up`, :meth:`end`.

    Attributes:
        sinks: of all workers.
        keeper: the sink at which the server is claimed.
        held: seconds for which the last update held requests.
    """

    def __init__(self, server: VllmServer, config: Config, pause: str, draft: bool) -> None:
        self.server, self._config, self._mode, self._draft = server, config, pause, draft
        self.sinks: tuple[str, ...] = ()
        self.keeper = ""
        self.held = 0.0
        self._claim: EngineClaim | None = None
        self._paused = self._stuck = False
        self._held_since = 0.0

    @property
    def is_claimed(self) -> bool:
        """Whether this program drives the server."""
        return self._claim is not None

    def find(self) -> None:
        """Find the sinks of all workers.

        A server whose forward pass waits for an update answers nothing: its sinks are those that it had.
        """
        self.held = 0.0
        if self._stuck:
            return
        found = self._find_sinks()
        expected = self.server.world_size()
        if len(found) != expected:
            raise EngineError(
                f"{self.server.url} has {expected} workers, and {len(found)} of them can be updated; replicas behind "
                "one endpoint (data parallelism) must be given an endpoint each"
            )
        self.sinks = tuple(found)

    def take(self, claim: EngineClaim) -> None:
        """This program drives the server from now on. A pause that another one has left is ended with the update."""
        self._claim = claim
        self._paused = PAUSE in claim.begun

    def begin(self) -> None:
        """Do what the server needs before an update. Requests do not notice."""

    def pause(self) -> None:
        """Hold requests, as far as that was asked for. Who has paused the server by other means keeps that pause."""
        self._held_since = time.monotonic()
        if self._mode != NO_PAUSE:
            if self._paused or not self.server.is_paused():
                self._own_claim.begin(PAUSE)
                self._paused = True
            self.server.pause(self._mode, self._config.update_timeout)

    def serve(self, version: str) -> str:
        """All workers have committed: serve requests from the new weights. Returns what keeps the server from that."""
        self._own_claim.check()
        self._stuck = False
        self._label(version)
        self.server.reset_caches()
        self._resume()
        return self._why_paused()

    def give_up(self, tainted: bool) -> str:
        """The update failed: serve on, unless the weights are a mix. Returns what was done, for people."""
        if not self.is_claimed:
            return f"{self.server.url} was not touched"
        self._own_claim.check()
        self._abandon()
        if not tainted:
            self._resume()
            return self._why_paused() or f"{self.server.url} serves the old version"
        try:
            if not self._paused:
                self._own_claim.begin(PAUSE)
                self._paused = True
                self.server.pause("keep", timeout=STUCK_SECONDS)
        except EngineError:
            self._stuck = True
            return (
                f"{self.server.url} holds a mix of two versions, and a forward pass waits there until its sinks are "
                f"updated: {', '.join(self.sinks)}"
            )
        return f"{self.server.url} holds a mix of two versions and is left paused until an update succeeds"

    def end(self) -> None:
        """Let others drive the server."""
        if self._claim is not None:
            self._claim.release()
        self._claim = None

    @property
    def _own_claim(self) -> EngineClaim:
        assert self._claim is not None, "the server was not claimed"
        return self._claim

    def _resume(self) -> None:
        """End the pause, if a program like this one has begun it."""
        if self._paused:
            self.server.resume()
            self.held = time.monotonic() - self._held_since if self._held_since else 0.0
            self._own_claim.end(PAUSE)
        self._paused, self._held_since = False, 0.0

    def _why_paused(self) -> str:
        """Why the server serves nobody; empty when it does."""
        if not self.server.is_paused():
            return ""
        return (
            f"{self.server.url} is left paused, as others have asked of it while no update went on: "
            f"POST {self.server.url}/resume when it may serve"
        )

    @abstractmethod
    def warm_up(self) -> None:
        """Have all workers, whose sinks were found, do in the background what the first update would do."""

    @abstractmethod
    def _find_sinks(self) -> list[str]:
        """The address of every worker's sink; :attr:`keeper` is known then."""

    @abstractmethod
    def _label(self, version: str) -> None:
        """Name what is served now."""

    def _abandon(self) -> None:
        """End what :meth:`begin` and :meth:`pause` have begun in the server, other than the pause."""


class ExtensionDriver(Driver):
    """Through the worker extension."""

    def _find_sinks(self) -> list[str]:
        answers = self.server.call_workers(
            "ckpt_transport_attach",
            host=self._config.host or host_name(),
            engine=self.server.url,
            version=self.server.weight_version(),
            draft=self._draft,
        )
        for rank, answer in enumerate(answers):
            if answer["error"]:
                raise EngineError(f"rank {rank} of {self.server.url}: {answer['error']}")
        self.keeper = answers[0]["keeper"]
        return [answer["address"] for answer in answers]

    def warm_up(self) -> None:
        for rank, answer in enumerate(self.server.call_workers("ckpt_transport_warm_up", draft=self._draft)):
            if answer["error"]:
                raise EngineError(f"rank {rank} of {self.server.url}: {answer['error']}")

    def _label(self, version: str) -> None:
        if not self._draft:
            self.server.label(version)


class NativeDriver(Driver):
    """Through vLLM's own life cycle of weight transfer: init, start, update, finish."""

    def __init__(self, server: VllmServer, config: Config, pause: str, draft: bool) -> None:
        if pause == NO_PAUSE:
            raise ConfigError(
                f"{server.url} is updated through vLLM's weight transfer, which does not hold forward passes by "
                "itself: choose another --pause than none"
            )
        super().__init__(server, config, pause, draft)
        self._thread = ThreadPoolExecutor(1, "ckpt-transport-vllm")
        self._updating: Future[None] | None = None
        self._started = False

    def warm_up(self) -> None:
        self._find_sinks(warm_up=True)

    def _find_sinks(self, *, warm_up: bool = False) -> list[str]:
        found: set[str] = set()
        workers, version = self.server.world_size(), self.server.weight_version()
        deadline = time.monotonic() + self._config.join_timeout
        with open_mailbox(self._report_to(), (Here,), self._config) as mailbox:
            while len(found) < workers and time.monotonic() < deadline:
                self.server.init_native(
                    report_to=mailbox.address,
                    host=self._config.host or host_name(),
                    engine=self.server.url,
                    version=version,
                    warm_up=warm_up,
                )
                until = time.monotonic() + REPORT_SECONDS
                while len(found) < workers and time.monotonic() < until:
                    received = mailbox.receive(TICK_SECONDS)
                    if received is not None and isinstance(received[1], Here):
                        found.add(received[1].address)
        self.keeper = min(found, default="")
        return sorted(found)

    def begin(self) -> None:
        if UPDATE in self._own_claim.begun:
            self.server.finish_native(None)
        self.server.start_native(self._draft)
        self._started = True

    def _report_to(self) -> str:
        """Where this server's workers can reach a mailbox of this process; empty for a UNIX socket."""
        if is_loopback(urlsplit(self.server.url).hostname or ""):
            return ""
        return any_port(self._config.interface)

    def pause(self) -> None:
        super().pause()
        self._updating = self._thread.submit(
            self.server.update_native, self._config.join_timeout, self._config.update_timeout
        )

    def _label(self, version: str) -> None:
        self._end_update(None if self._draft else version, self._config.join_timeout)

    def _abandon(self) -> None:
        self._end_update(None, 2 * self._config.join_timeout)

    def _end_update(self, version: str | None, timeout: float) -> None:
        """Wait until the server has ended the update, if it has begun it, and have it name what it serves."""
        try:
            if self._updating is not None:
                self._updating.result(timeout)
        except TimeoutError as error:
            raise EngineError(
                f"{self.server.url} has not ended its update within {timeout:g} s; update again, or restart it"
            ) from error
        if self._started:
            self.server.finish_native(version)
        self._updating, self._started = None, False


def driver_for(server: VllmServer, config: Config, pause: str, draft: bool) -> Driver:
    """The driver for what ``server`` was started with; the extension where it has both.

    Raises:
        EngineError: it was started with neither.
    """
    configuration = server.configuration()
    if configuration["parallel_config"].get("worker_extension_cls") == EXTENSION:
        return ExtensionDriver(server, config, pause, draft)
    if (configuration.get("weight_transfer_config") or {}).get("backend") == BACKEND:
        return NativeDriver(server, config, pause, draft)
    raise EngineError(
        f"{server.url} cannot be updated: start it with --worker-extension-cls {EXTENSION}, or with "
        """--weight-transfer-config '{"backend": "ckpt_transport"}'"""
    )
