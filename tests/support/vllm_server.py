"""``vllm serve`` as a child process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckpt_transport.service.endpoints import client_of
from ckpt_transport_vllm.server import EXTENSION, VllmServer
from tests.support.serving import Process as Process
from tests.support.serving import ServedChild, ServeError

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


class Serve(ServedChild):
    """``vllm serve``; see :class:`ServedChild`."""

    kind = "vLLM"

    def __init__(
        self,
        directory: Path,
        log: Path,
        arguments: Sequence[str] = EXTENDED,
        environment: dict[str, str] | None = None,
    ) -> None:
        super().__init__(directory, log, arguments, environment)

    def _own_arguments(self, directory: Path, port: int) -> Sequence[str]:
        return ["serve", str(directory), f"--port={port}", f"--served-model-name={MODEL}", *SMALL]

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-m", CLI]

    def _environment(self) -> dict[str, str]:
        python_path = os.pathsep.join(filter(None, (SHARED_CORES, os.environ.get("PYTHONPATH"))))
        return {**super()._environment(), **ENVIRONMENT, "PYTHONPATH": python_path}

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
