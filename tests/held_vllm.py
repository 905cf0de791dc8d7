"""As much of a vLLM that a program holds as a fleet calls, around the real sink of a plain module."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ckpt_transport import Config, Sink
from ckpt_transport_torch import Attachment, TorchEngine
from ckpt_transport_vllm.plugin import ATTACH, METHODS
from tests.fleet import model


class Held:
    """As much of a vLLM as a fleet calls, around the sink of a module, and nothing that holds requests."""

    def __init__(self, config: Config, caches: str = "") -> None:
        self.model, self.caches = model(1), caches
        engine = TorchEngine(self.model)
        self.attached = Attachment(self.model, engine, Sink(engine, version="v1", config=config).start())
        self.called: list[str] = []

    def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        self.called.append(method)
        if method == "__dir__":
            return [[*METHODS]]
        if method == ATTACH:
            return [{"error": "", "address": self.attached.address, "keeper": self.attached.address}]
        return [{"error": "", "workers": "1", "caches_prefixes": self.caches}]


class Pausing(Held):
    """Holds requests as an ``LLM`` does, one thing at the engine within."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, caches="yes")
        self.sleeps = False
        self.llm_engine = SimpleNamespace(is_sleeping=lambda: self.sleeps)

    def sleep(self, level: int, mode: str) -> None:
        self.called.append(f"sleep {level} {mode}")
        self.sleeps = True

    def wake_up(self, tags: list[str]) -> None:
        self.called.append(f"wake up {tags}")
        self.sleeps = False

    def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        self.called.append(f"reset {reset_running_requests}")
        return True


class Asynchronous(Held):
    """Answers in an event loop, as an ``AsyncLLM`` does."""

    paused = False

    async def collective_rpc(self, *args: Any, **kwargs: Any) -> list[Any]:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().collective_rpc(*args, **kwargs)

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self.called.append(f"pause {mode} {clear_cache}")
        self.paused = True

    async def resume_generation(self) -> None:
        self.paused = False

    async def is_paused(self) -> bool:
        return self.paused
