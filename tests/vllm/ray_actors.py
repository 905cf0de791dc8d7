"""vLLMs in Ray actors are given to a fleet by their handles, beside nothing else, and are updated together.

One actor is vLLM's own ``LLM``. The other holds an ``AsyncLLM`` and passes methods on, as OpenRLHF's could.

Usage: ``python -m tests.vllm.ray_actors FOLDER``, with checkpoints of the family qwen3 and the seeds 1 and 2.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
import typer

from ckpt_transport import EngineError, ParameterServer
from ckpt_transport_vllm import VllmFleet
from tests.support.serving import shared_by
from tests.support.vllm_server import ENVIRONMENT, SHARED_CORES
from tests.vllm.handles import IN_CHILDREN, PROMPT, Answers, arguments, sampling
from tests.vllm.servers import CORES, PATIENCE, swift

STORE_NBYTES = 80 << 20
"""Memory of Ray's object store: no weights go through it."""


class Rollout:
    """An actor that holds an ``AsyncLLM``."""

    def __init__(self, given: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.llm: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**given))

    async def collective_rpc(self, method: str, **given: Any) -> Any:
        return await self.llm.collective_rpc(method, **given)

    async def pause_generation(self, mode: str = "keep", clear_cache: bool = True) -> None:
        await self.llm.pause_generation(mode=mode, clear_cache=clear_cache)

    async def resume_generation(self) -> None:
        await self.llm.resume_generation()

    async def is_paused(self) -> bool:
        return bool(await self.llm.is_paused())

    async def reset_prefix_cache(self, **given: Any) -> Any:
        return await self.llm.reset_prefix_cache(**given)

    async def tokens(self, count: int) -> list[int]:
        found: list[int] = []
        async for output in self.llm.generate({"prompt_token_ids": PROMPT}, sampling(count), f"of {count}"):
            found = list(output.outputs[0].token_ids)
        return found


def wait_for(answer: Any) -> Any:
    return ray.get(answer, timeout=PATIENCE)


def kill(actor: Any) -> None:
    """End an actor, and wait until it is ended: ``ray.kill`` only asks for it."""
    ray.kill(actor)
    with suppress(ray.exceptions.ActorDiedError):
        while True:
            wait_for(actor.is_paused.remote())


def of_llm(actor: Any) -> Answers:
    (answer,) = wait_for(actor.generate.remote([{"prompt_token_ids": PROMPT}], sampling(12), use_tqdm=False))
    (checksums,) = wait_for(actor.collective_rpc.remote("ckpt_transport_checksums"))
    return list(answer.outputs[0].token_ids), checksums


def of_rollout(actor: Any) -> Answers:
    (checksums,) = wait_for(actor.collective_rpc.remote("ckpt_transport_checksums"))
    return wait_for(actor.tokens.remote(12)), checksums


def check(folder: Path, shared: set[Path]) -> None:
    """Update both, while one answers; then one of them dies. What they share is added to ``shared`` before."""
    import vllm

    one, two = (arguments(folder / f"qwen3-{seed}") for seed in (1, 2))
    llm = ray.remote(vllm.LLM).options(num_cpus=1, runtime_env={"env_vars": {IN_CHILDREN: "0", CORES: "0"}})
    rollout = ray.remote(Rollout).options(num_cpus=1, runtime_env={"env_vars": {CORES: "1"}})
    offline, online = llm.remote(**one), rollout.remote(two)
    first, second = of_llm(offline), of_rollout(online)
    assert first != second
    config = swift()
    with ParameterServer(config) as server, VllmFleet([offline, online], config) as fleet:
        for seed in (1, 2):
            server.register(f"v{seed}", directory=folder / f"qwen3-{seed}")
        running = online.tokens.remote(200)
        done = fleet.update(server, "v1")
        assert done is not None
        assert done.problems == ()
        assert sorted(done.held) == sorted([repr(offline), repr(online)])
        assert len(wait_for(running)) == 200
        assert of_llm(offline) == of_rollout(online) == first
        fleet.update(server, "v2")
        assert of_llm(offline) == of_rollout(online) == second

        shared.update(shared_by(os.getpid()))
        kill(online)
        with pytest.raises(EngineError, match=re.escape(repr(online))):
            fleet.update(server, "v1")
        assert of_llm(offline) == second
    print("an LLM and an AsyncLLM in actors: updated together, exactly")


def main(folder: Path) -> None:
    """Check updates of vLLMs in Ray actors."""
    os.environ.update(ENVIRONMENT, RAY_AUTH_MODE="disabled")  # else it leaves a token in the home of who runs this
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SHARED_CORES, os.environ.get("PYTHONPATH"))))
    of_ray = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets are short
    shared: set[Path] = set()
    try:
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=STORE_NBYTES, log_to_driver=False, _temp_dir=of_ray
        )
        check(folder, shared)
    finally:
        ray.shutdown()
        for left in shared:
            left.unlink(missing_ok=True)
        shutil.rmtree(of_ray, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
