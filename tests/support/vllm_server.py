"""``vllm serve`` as a child process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
import psutil

from ckpt_transport.memory.segment import SHM
from ckpt_transport.service.endpoints import client_of
from ckpt_transport_vllm.server import EXTENSION, VllmServer
from tests.support.serving import ServeError, last_words

START_SECONDS = 900.0
"""A server that cannot start ends sooner. One that starts takes minutes on a busy machine."""
STOP_SECONDS = 40.0
HEALTH_SECONDS = 5.0
TIDY_SECONDS = 5.0
"""What is left of a server when it has ended may still remove shared memory for so long."""
CLI = "vllm.entrypoints.cli.main"
MODEL = "tiny"
COMPLETIONS = "/v1/completions"
EXTENDED = ("--worker-extension-cls", EXTENSION)
NATIVE = ("--weight-transfer-config", '{"backend": "ckpt_transport"}')
SHARED_CORES = str(Path(__file__).with_name("shared_cores"))
CACHE_BYTES = 128 << 20
"""For keys and values. vLLM writes to all of it when it starts."""
SMALL = (
    "--enforce-eager",
    "--max-model-len=256",
    "--max-num-seqs=4",
    "--dtype=bfloat16",
    f"--kv-cache-memory-bytes={CACHE_BYTES}",
)
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}


class Process(Protocol):
    """A process that was started; its methods are those of ``subprocess.Popen``."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


class Serve:
    """One server, started at once; :meth:`wait` before use, :meth:`close` to end it and all its workers.

    Args:
        directory: the checkpoint it starts with.
        log: where its processes write.
        arguments: of ``vllm serve``.
        environment: further variables.
    """

    def __init__(
        self,
        directory: Path,
        log: Path,
        arguments: Sequence[str] = EXTENDED,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._log = log
        self._segments: set[Path] = set()
        self._scratch = tempfile.TemporaryDirectory(prefix="vllm-")
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        arguments = ["serve", str(directory), f"--port={port}", f"--served-model-name={MODEL}", *SMALL, *arguments]
        self.process: Process = self._start(arguments, {**os.environ, **self._environment(), **(environment or {})})

    def _start(self, arguments: Sequence[str], environment: dict[str, str]) -> Process:
        """Start ``vllm ARGUMENTS`` in a session of its own."""
        with self._log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", CLI, *arguments],
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
            while time.monotonic() < deadline and self.process.poll() is None:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get("/health").is_success:
                        self._segments = self._shared_memory()
                        return self
                time.sleep(0.3)
        raise ServeError(f"vLLM did not start:\n{self.last_words()}")

    def complete(self, prompt: str = "hello", tokens: int = 12, timeout: float = 60.0) -> list[int]:
        """The tokens of a greedy completion.

        Raises:
            ServeError: it was refused.
            httpx.HTTPError: there was no answer.
        """
        with client_of(self.url, timeout) as client:
            answer = client.post(COMPLETIONS, json=greedy(prompt, tokens))
        if answer.is_error:
            raise ServeError(f"a completion was refused with {answer.status_code}: {answer.text[:300]}")
        found: list[int] = answer.json()["choices"][0]["token_ids"]
        return found

    def checksums(self) -> list[dict[str, str]]:
        """Of every parameter, by rank; see :meth:`WorkerExtension.ckpt_transport_checksums`.

        Raises:
            ServeError: a rank could not compute them.
        """
        with VllmServer(self.url) as server:
            found: list[dict[str, str]] = server.call_workers("ckpt_transport_checksums")
        for rank, checksums in enumerate(found):
            if "error" in checksums:
                raise ServeError(f"rank {rank} has no checksums: {checksums['error']}")
        return found

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

    def _environment(self) -> dict[str, str]:
        python_path = os.pathsep.join(filter(None, (SHARED_CORES, os.environ.get("PYTHONPATH"))))
        return {**ENVIRONMENT, "TMPDIR": self._scratch.name, "PYTHONPATH": python_path}

    def _shared_memory(self) -> set[Path]:
        """What vLLM's own processes share; with several ranks, some of it is left behind when they end."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        mapped = {Path(mapping.path) for process in processes for mapping in process.memory_maps()}
        return {path for path in mapped if path.parent == SHM and not path.name.startswith("ckpt")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def greedy(prompt: str, tokens: int, stream: bool = False) -> dict[str, Any]:
    """What to post to :data:`COMPLETIONS` for exactly that many of the likeliest tokens."""
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": stream,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
