"""The two ways into a running server: how its sinks are found, and what surrounds an update."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import urlsplit

from ckpt_transport.config import Config
from ckpt_transport.control import addresses
from ckpt_transport.errors import ConfigError, EngineError
from ckpt_transport.session import messages as m
from ckpt_transport.session.endpoints import is_loopback
from ckpt_transport.session.host import host_name
from ckpt_transport.session.mailbox import open_mailbox
from ckpt_transport_vllm.server import EXTENSION, VllmServer, has_extension, has_native_engine

NO_PAUSE = "none"
REPORT_SECONDS = 2.0
"""How long workers have to say where their sinks are before they are asked again."""
STUCK_SECONDS = 5.0
"""How long a server may take to pause that has a forward pass waiting."""
TICK_SECONDS = 0.1
PAUSES = ("keep", "wait", "abort", NO_PAUSE)


class Driver(ABC):
    """Drives one server through one update after another."""

    def __init__(self, server: VllmServer, config: Config, pause: str, draft: bool) -> None:
        self.server, self._config, self._mode, self._draft = server, config, pause, draft
        self.sinks: tuple[str, ...] = ()
        self._was_tainted = self._was_paused = self._paused = self._stuck = False
        self._held_since = 0.0
        self.held = 0.0

    def open(self) -> None:
        """Find the sinks of all workers.

        A server whose forward pass waits for an update answers nothing: its sinks are those that it had.
        """
        self.held = 0.0
        if self._stuck:
            self._was_tainted, self._was_paused = True, False
            return
        found = self._find_sinks()
        expected = self.server.world_size()
        if len(found) != expected:
            raise EngineError(
                f"{self.server.url} has {expected} workers, and {len(found)} of them can be updated; replicas behind "
                "one endpoint (data parallelism) must be given an endpoint each"
            )
        self.sinks = tuple(address for address, _ in found)
        self._was_tainted = any(tainted for _, tainted in found)
        self._was_paused = self.server.is_paused()

    def pause(self) -> None:
        """Hold requests, as far as that was asked for."""
        self._held_since = time.monotonic()
        if self._mode != NO_PAUSE:
            self._paused = True
            self.server.pause(self._mode, self._config.update_timeout)

    def serve(self, version: str) -> None:
        """The update was committed: serve requests from the new weights."""
        self._stuck = False
        self._label(version)
        self.server.reset_caches()
        if self._was_tainted or not self._was_paused:
            self.resume()

    def resume(self) -> None:
        """Let requests go on, if they were held."""
        if self._paused or self._was_tainted:
            self.server.resume()
            self.held = time.monotonic() - self._held_since
        self._paused = self._was_tainted = False

    def give_up(self, tainted: bool) -> str:
        """The update failed: serve on, unless the weights are a mix. Returns what was done, for people."""
        self._abandon()
        if not tainted and not self._was_tainted:
            if self._paused and not self._was_paused:
                self.resume()
            return f"{self.server.url} serves the old version"
        try:
            if not self._paused:
                self.server.pause("keep", timeout=STUCK_SECONDS)
        except EngineError:
            self._stuck = True
            return (
                f"{self.server.url} holds a mix of two versions, and a forward pass waits there until its sinks are "
                f"updated: {', '.join(self.sinks)}"
            )
        return f"{self.server.url} holds a mix of two versions and is left paused until an update succeeds"

    @abstractmethod
    def _find_sinks(self) -> list[tuple[str, str]]:
        """The address of every worker's sink, and why it is tainted, if it is."""

    @abstractmethod
    def _label(self, version: str) -> None:
        """Name what is served now."""

    def _abandon(self) -> None:
        """End what :meth:`open` and :meth:`pause` have begun in the server."""


class ExtensionDriver(Driver):
    """Through the worker extension."""

    def _find_sinks(self) -> list[tuple[str, str]]:
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
        return [(answer["address"], answer["tainted"]) for answer in answers]

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

    def _find_sinks(self) -> list[tuple[str, str]]:
        found: dict[str, str] = {}
        workers, version = self.server.world_size(), self.server.weight_version()
        deadline = time.monotonic() + self._config.join_timeout
        with open_mailbox(self._report_to(), (m.Here,), self._config) as mailbox:
            while len(found) < workers and time.monotonic() < deadline:
                self.server.init_native(
                    report_to=mailbox.address,
                    host=self._config.host or host_name(),
                    engine=self.server.url,
                    version=version,
                )
                until = time.monotonic() + REPORT_SECONDS
                while len(found) < workers and time.monotonic() < until:
                    received = mailbox.receive(TICK_SECONDS)
                    if received is not None and isinstance(received[1], m.Here):
                        found[received[1].address] = received[1].served.tainted
        self.server.start_native(self._draft)
        self._started = True
        return sorted(found.items())

    def _report_to(self) -> str:
        """Where this server's workers can reach a mailbox of this process; empty for a UNIX socket."""
        if is_loopback(urlsplit(self.server.url).hostname or ""):
            return ""
        return addresses.any_port(self._config.interface)

    def pause(self) -> None:
        super().pause()
        self._updating = self._thread.submit(
            self.server.update_native, self._config.join_timeout, self._config.update_timeout
        )

    def _label(self, version: str) -> None:
        if self._updating is not None:
            self._updating.result(self._config.join_timeout)
        self.server.finish_native(None if self._draft else version)
        self._updating, self._started = None, False

    def _abandon(self) -> None:
        if self._updating is not None:
            self._updating.result(2 * self._config.join_timeout)
        if self._started:
            self.server.finish_native(None)
        self._updating, self._started = None, False


def driver_for(server: VllmServer, config: Config, pause: str, draft: bool) -> Driver:
    """The driver for what ``server`` was started with; the extension where it has both.

    Raises:
        EngineError: it was started with neither.
    """
    configuration = server.configuration()
    if has_extension(configuration):
        return ExtensionDriver(server, config, pause, draft)
    if has_native_engine(configuration):
        return NativeDriver(server, config, pause, draft)
    raise EngineError(
        f"{server.url} cannot be updated: start it with --worker-extension-cls {EXTENSION}, or with "
        """--weight-transfer-config '{"backend": "ckpt_transport"}'"""
    )
