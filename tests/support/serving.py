"""What servers have in common that tests and demonstrations start as child processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import httpx
import psutil

from ckpt_transport.memory.segment import SHM
from ckpt_transport.service.endpoints import client_of
from tests.support.ports import free_port

START_SECONDS = 900.0
"""A server that cannot start ends sooner. One that starts takes minutes on a busy machine."""
GIVEN_UP = "Application shutdown complete"
"""What uvicorn writes last."""
STOP_SECONDS = 40.0
HEALTH_SECONDS = 5.0
TIDY_SECONDS = 5.0
"""What is left of a server when it has ended may still remove shared memory for so long."""


class ServeError(RuntimeError):
    """The server did not start, or refused a request."""


class Process(Protocol):
    """A process that was started; its methods are those of ``subprocess.Popen``."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


class ServedChild(ABC):
    """A server of inference, started at once; :meth:`wait` before use, :meth:`close` to end it and all its workers.

    Args:
        directory: the checkpoint it starts with.
        log: where its processes write.
        arguments: of the server.
        environment: further variables.
    """

    kind: str
    health_route = "/health"

    def __init__(
        self, directory: Path, log: Path, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        self._segments: set[Path] = set()
        self._scratch = tempfile.TemporaryDirectory(prefix=f"{self.kind.lower()}-")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        arguments = [*self._own_arguments(directory, port), *arguments]
        self.process: Process = self._start(arguments, {**os.environ, **self._environment(), **(environment or {})})

    @abstractmethod
    def _own_arguments(self, directory: Path, port: int) -> Sequence[str]:
        """With which it serves a checkpoint at a port."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What starts it, before its arguments."""

    def _environment(self) -> dict[str, str]:
        return {"TMPDIR": self._scratch.name}

    def _start(self, arguments: Sequence[str], environment: dict[str, str]) -> Process:
        """Start it in a session of its own."""
        with self._log.open("wb") as output:
            return subprocess.Popen(
                [*self._command(), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait(self) -> Self:
        """
        Raises:
            ServeError: it does not serve; with what it wrote last.
        """
        deadline = time.monotonic() + START_SECONDS
        with client_of(self.url, HEALTH_SECONDS) as client:
            while time.monotonic() < deadline and self.process.poll() is None and not self._has_given_up():
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(self.health_route).is_success:
                        self._segments = shared_by(self.process.pid)
                        return self
                time.sleep(0.3)
        raise ServeError(f"{self.kind} did not start:\n{self.last_words()}")

    def _has_given_up(self) -> bool:
        """Its processes may live on when it cannot serve, as where its port is taken."""
        return GIVEN_UP in self.last_words()

    @abstractmethod
    def complete(self, prompt: str = "hello", tokens: int = 12, timeout: float = 60.0) -> list[int]:
        """The tokens of a greedy completion.

        Raises:
            ServeError: it was refused.
            httpx.HTTPError: there was no answer.
        """

    @abstractmethod
    def checksums(self) -> list[dict[str, str]]:
        """Of every parameter, by rank.

        Raises:
            ServeError: a rank could not compute them.
        """

    def last_words(self) -> str:
        """The end of what its processes wrote."""
        return last_words(self._log)

    def close(self) -> None:
        """End it, and see all its processes end, even when interrupted meanwhile. Idempotent."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(STOP_SECONDS)
        finally:
            deadline = time.monotonic() + TIDY_SECONDS
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
                while time.monotonic() < deadline:
                    os.killpg(self.process.pid, 0)
                    time.sleep(0.05)
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP_SECONDS)
            self._scratch.cleanup()
            for segment in self._segments:
                segment.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shared_by(pid: int) -> set[Path]:
    """What others than this library share in a process and its children, who leave some of it behind when they end.

    A semaphore is mapped under another name than it has, so inodes are compared.
    """
    inodes: set[int] = set()
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines()
            inodes.update(int(line.split()[4]) for line in maps if f" {SHM}/" in line)
    found: set[Path] = set()
    for path in SHM.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_ino in inodes and not path.name.startswith("ckpt"):
                found.add(path)
    return found


def last_words(log: Path) -> str:
    """The end of what a server's processes wrote."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
