"""SGLang's server as a child process, on a CPU, or on a GPU where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import torch

from ckpt_transport.service.endpoints import client_of
from tests.support.serving import ServedChild, ServeError

GENERATE = "/generate"
EVENT, LAST = "data: ", "data: [DONE]"
SMALL = (
    "--sampling-backend=pytorch",
    "--grammar-backend=none",
    "--skip-tokenizer-init",
    "--skip-server-warmup",
    "--cuda-graph-backend-decode=disabled",
    "--cuda-graph-backend-prefill=disabled",
    "--mem-fraction-static=0.1",
    "--max-total-tokens=2048",
    "--max-running-requests=4",
    "--watchdog-timeout=3600",
    "--random-seed=1",
    "--log-level=info",
)
ON_CPU = ("--device=cpu", "--attention-backend=torch_native")
ON_GPU = ("--device=cuda", "--attention-backend=triton")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


class SglangServe(ServedChild):
    """SGLang with a tiny model; see :class:`ServedChild`. It is given tokens, and answers with tokens."""

    kind = "SGLang"
    health_route = "/ready"
    key = ""
    """Of ``--admin-api-key``, where it was started with one."""

    def _own_arguments(self, directory: Path, port: int) -> Sequence[str]:
        there = ON_GPU if torch.cuda.is_available() else ON_CPU
        return [f"--model-path={directory}", f"--port={port}", *SMALL, *there]

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-m", "tests.sglang.serving"]

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), **ENVIRONMENT}

    def complete(self, prompt: str = "hello", tokens: int = 12, timeout: float = 60.0) -> list[int]:
        """The tokens of a greedy completion.

        Raises:
            ServeError: it was refused.
            httpx.HTTPError: there was no answer.
        """
        found: list[int] = self.generate(prompt, tokens, timeout)["output_ids"]
        return found

    def generate(self, prompt: str = "hello", tokens: int = 12, timeout: float = 60.0) -> Any:
        """A greedy completion as SGLang gives it.

        Raises:
            ServeError: it was refused.
            httpx.HTTPError: there was no answer.
        """
        return self.ask("POST", GENERATE, greedy(prompt, tokens), timeout)

    def checksums(self) -> list[dict[str, str]]:
        """Of every parameter, by rank; SGLang's own.

        Raises:
            ServeError: they could not be computed.
        """
        ranks: list[dict[str, Any]] = self.ask("POST", "/weights_checker", {"action": "checksum"})["ranks"]
        return [rank["checksums"] for rank in ranks]

    def ask(self, method: str, path: str, json: Any = None, timeout: float = 60.0) -> Any:
        """What a route answers, in JSON.

        Raises:
            ServeError: it was refused.
        """
        with client_of(self.url, timeout) as client:
            headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            answer = client.request(method, path, json=json, headers=headers)
        if answer.is_error:
            raise ServeError(f"{path} was refused with {answer.status_code}: {answer.text[:300]}")
        return answer.json()


def greedy(prompt: str, tokens: int, stream: bool = False) -> dict[str, Any]:
    """What to post to :data:`GENERATE` for exactly that many of the likeliest tokens; the prompt's bytes are tokens."""
    parameters = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    return {"input_ids": list(prompt.encode()), "sampling_params": parameters, "stream": stream}


def events(client: httpx.Client, prompt: str, tokens: int) -> Iterator[dict[str, Any]]:
    """A greedy completion as it comes, token by token.

    Raises:
        httpx.HTTPError: it was refused, or there was no answer.
    """
    with client.stream("POST", GENERATE, json=greedy(prompt, tokens, stream=True)) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith(EVENT) and line != LAST:
                yield msgspec.json.decode(line.removeprefix(EVENT))
