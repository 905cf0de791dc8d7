"""vLLMs that this program holds as Python objects, each with an extension class of somebody else, are updated together.

An ``LLM`` runs in this process, and an ``AsyncLLM`` in an event loop, with its engine in a child process.

Usage: ``python -m tests.vllm.handles FOLDER``, with checkpoints of the family qwen3 and the seeds 1 and 2.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import typer

from ckpt_transport import ParameterServer
from ckpt_transport_vllm import VllmFleet, VllmHandle
from tests.support.vllm_server import CACHE_BYTES, ENVIRONMENT
from tests.vllm.servers import PATIENCE, swift

PROMPT = [1, 22, 133, 44, 5]
IN_CHILDREN = "VLLM_ENABLE_V1_MULTIPROCESSING"
EXTENSIONS = "tests.vllm.other_extension"

Answers = tuple[list[int], dict[str, str]]
"""Greedy tokens, and checksums."""


def arguments(directory: Path, extension: str = "") -> dict[str, Any]:
    """Of an engine of either kind, with an extension class of somebody else if one is named."""
    return {
        "model": str(directory),
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": CACHE_BYTES,
        "dtype": "bfloat16",
        "worker_extension_cls": f"{EXTENSIONS}.{extension}" if extension else "",
    }


def sampling(tokens: int) -> Any:
    import vllm

    return vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)


class Offline:
    """An ``LLM`` in this process, whose extension class knows nothing of ours."""

    def __init__(self, directory: Path) -> None:
        import vllm

        os.environ[IN_CHILDREN] = "0"
        self.held: Any = vllm.LLM(**arguments(directory, "OtherExtension"))
        assert self.held.collective_rpc("whose") == ["somebody else's"]

    def answers(self) -> Answers:
        (answer,) = self.held.generate([{"prompt_token_ids": PROMPT}], sampling(12), use_tqdm=False)
        (checksums,) = self.held.collective_rpc("ckpt_transport_checksums")
        return list(answer.outputs[0].token_ids), checksums


class Online:
    """An ``AsyncLLM`` in an event loop of its own, whose extension class inherits from ours and another."""

    def __init__(self, directory: Path) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        os.environ[IN_CHILDREN] = "1"
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

        async def start() -> Any:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments(directory, "BothExtension")))

        self.engine: Any = self._wait(start())
        self.held = VllmHandle(self.engine, self._loop)
        assert self._wait(self.engine.collective_rpc("whose")) == ["somebody else's"]

    def answers(self) -> Answers:
        tokens = self.begin(12).result(PATIENCE)
        (checksums,) = self._wait(self.engine.collective_rpc("ckpt_transport_checksums"))
        return tokens, checksums

    def begin(self, tokens: int) -> Future[list[int]]:
        """Ask for that many tokens."""

        async def generate() -> list[int]:
            found: list[int] = []
            request = f"of {tokens}"
            async for output in self.engine.generate({"prompt_token_ids": PROMPT}, sampling(tokens), request):
                found = list(output.outputs[0].token_ids)
            return found

        return asyncio.run_coroutine_threadsafe(generate(), self._loop)

    def pause(self) -> None:
        """As a person does who wants it to stay so."""
        self._wait(self.engine.pause_generation(mode="keep"))

    def resume(self) -> None:
        self._wait(self.engine.resume_generation())

    def close(self) -> None:
        async def shut_down() -> None:
            self.engine.shutdown()

        self._wait(shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait(self, call: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(PATIENCE)


def check(folder: Path) -> None:
    """Update both there and back, while one answers, and while somebody else has paused it."""
    online = Online(folder / "qwen3-2")
    offline = Offline(folder / "qwen3-1")
    first, second = offline.answers(), online.answers()
    assert first != second
    config = swift()
    with ParameterServer(config) as server, VllmFleet([offline.held, online.held], config) as fleet:
        for seed in (1, 2):
            server.register(f"v{seed}", directory=folder / f"qwen3-{seed}")
        running = online.begin(200)
        done = fleet.update(server, "v2")
        assert done is not None
        assert done.problems == ()
        assert len(done.held) == 2
        assert all(seconds > 0 for seconds in done.held.values()), done.held
        assert len(running.result(PATIENCE)) == 200
        assert offline.answers() == online.answers() == second
        assert fleet.versions() == ("v2", "v2")

        online.pause()
        done = fleet.update(server, "v1")
        assert done is not None
        (problem,) = done.problems
        assert "is left paused, as others have asked" in problem, problem
        online.resume()
        assert offline.answers() == online.answers() == first
    with ParameterServer(config) as server, VllmFleet([offline.held], config, pause="none") as fleet:
        server.register("v2", directory=folder / "qwen3-2")
        done = fleet.update(server, "v2")
        assert done is not None
        assert done.problems == ()
        assert offline.answers() == second
    online.close()
    print("an LLM and an AsyncLLM, with extensions of others: updated together, exactly")


def main(folder: Path) -> None:
    """Check updates of vLLMs that this process holds."""
    os.environ.update(ENVIRONMENT)
    check(folder)


if __name__ == "__main__":
    typer.run(main)
