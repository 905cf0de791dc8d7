"""The server as the demonstration sees it: a child process and its HTTP interface."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec

from ckpt_transport.service.endpoints import client_of
from examples.llama.protocol import (
    Compare,
    Compared,
    Generate,
    Generated,
    Inspected,
    Serving,
    encode,
)

START_TIMEOUT = 100.0
STOP_TIMEOUT = 25.0
ANSWER_TIMEOUT = 60.0


class ServiceError(RuntimeError):
    """The server did not start, or did not serve a request."""


class Service:
    """A running server. Close it to end it and its workers.

    Args:
        directory: the checkpoint it starts with.
        version: its name.
        log: where its processes write.
        workers: how many share the model.
    """

    def __init__(self, directory: Path, version: str, log: Path, workers: int = 2) -> None:
        self._log = log
        command = [
            sys.executable,
            "-m",
            "examples.llama.server",
            f"--directory={directory}",
            f"--version={version}",
            f"--world-size={workers}",
        ]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, process_group=0
            )
        self.serving = Serving(0, (), ())

    def wait(self) -> None:
        """Wait until it serves.

        Raises:
            ServiceError: it does not; with what it wrote last.
        """
        assert self._process.stdout is not None
        readable = select.select([self._process.stdout], [], [], START_TIMEOUT)[0]
        line = self._process.stdout.readline() if readable else b""
        if not line:
            raise ServiceError(f"the server did not start:\n{self.last_words()}")
        self.serving = msgspec.json.decode(line, type=Serving)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.serving.port}"

    def generate(self, prompt: tuple[int, ...], max_tokens: int) -> Generated:
        return msgspec.json.decode(self._post("/generate", Generate(prompt, max_tokens)), type=Generated)

    def compare(self, directory: Path) -> tuple[Compared, ...]:
        return msgspec.json.decode(self._post("/compare", Compare(str(directory))), type=tuple[Compared, ...])

    def inspect(self) -> tuple[Inspected, ...]:
        with client_of(self.url, ANSWER_TIMEOUT) as client:
            answer = client.get("/parameters")
        return msgspec.json.decode(answer.raise_for_status().content, type=tuple[Inspected, ...])

    def last_words(self) -> str:
        """The end of what its processes wrote."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-30:])

    def close(self) -> None:
        """End it, and see it end. Idempotent."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _post(self, path: str, request: Generate | Compare) -> bytes:
        with client_of(self.url, ANSWER_TIMEOUT) as client:
            answer = client.post(path, content=encode(request))
        if answer.status_code != httpx.codes.OK:
            raise ServiceError(f"the server refused {path}: {answer.text}\n{self.last_words()}")
        return answer.content
