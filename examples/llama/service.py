"""The server as a demonstration sees it: worker processes and an HTTP interface."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import httpx
import msgspec

from examples.llama.messages import Compare, Compared, Generate, Generated, Inspected, Serving, encode
from tests.support.serving import ServeError, last_words

START_TIMEOUT = 100.0
STOP_TIMEOUT = 25.0
ANSWER_TIMEOUT = 60.0


class Service:
    """A server, started at once; :meth:`wait` before use, :meth:`close` to end all its workers.

    Args:
        directory: the checkpoint it starts with.
        version: its name.
        log: where its processes write.
        workers: how many share the model.
    """

    def __init__(self, directory: Path, version: str, log: Path, workers: int = 2) -> None:
        self._log = log
        self._scratch = tempfile.TemporaryDirectory(prefix="ckpt-transport-demo-")
        life, held = os.pipe()
        self._life = os.fdopen(held, "wb")  # workers end when it is closed, also because this process died
        command = [sys.executable, "-m", "examples.llama.server", f"--directory={directory}", f"--version={version}"]
        command += [f"--world-size={workers}", f"--rendezvous={self._scratch.name}/rendezvous"]
        with log.open("wb") as errors:
            self.processes = [
                subprocess.Popen(
                    [*command, f"--rank={rank}"],
                    stdin=life,
                    stdout=errors if rank else subprocess.PIPE,
                    stderr=errors,
                    process_group=0,
                )
                for rank in range(workers)
            ]
        os.close(life)
        self.sinks: tuple[str, ...] = ()
        self.url = ""

    def wait(self) -> Self:
        """Wait until it serves.

        Raises:
            ServeError: it does not; with what it wrote last.
        """
        deadline = time.monotonic() + START_TIMEOUT
        said = self.processes[0].stdout
        assert said is not None
        while not select.select([said], [], [], 0.1)[0]:
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                break
        else:
            line = said.readline()
            if line:
                serving = msgspec.json.decode(line, type=Serving)
                self.sinks, self.url = serving.sinks, f"http://127.0.0.1:{serving.port}"
                return self
        raise ServeError(f"the server did not start:\n{last_words(self._log)}")

    def generate(self, prompt: tuple[int, ...], max_tokens: int) -> Generated:
        return msgspec.json.decode(self._post("/generate", Generate(prompt, max_tokens)), type=Generated)

    def compare(self, directory: Path) -> tuple[Compared, ...]:
        return msgspec.json.decode(self._post("/compare", Compare(str(directory))), type=tuple[Compared, ...])

    def inspect(self) -> tuple[Inspected, ...]:
        answer = httpx.get(f"{self.url}/parameters", timeout=ANSWER_TIMEOUT, trust_env=False)
        return msgspec.json.decode(answer.raise_for_status().content, type=tuple[Inspected, ...])

    def close(self) -> None:
        """End it, and see it end. Idempotent."""
        self._life.close()
        for process in self.processes:
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT)
            if process.stdout is not None:
                process.stdout.close()
        self._scratch.cleanup()

    def _post(self, path: str, request: Generate | Compare) -> bytes:
        answer = httpx.post(f"{self.url}{path}", content=encode(request), timeout=ANSWER_TIMEOUT, trust_env=False)
        if answer.status_code != httpx.codes.OK:
            raise ServeError(f"the server refused {path}: {answer.text}\n{last_words(self._log)}")
        return answer.content
