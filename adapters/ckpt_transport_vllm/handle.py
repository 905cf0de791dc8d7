"""Calls a vLLM through a Python object that this program holds: an ``LLM``, an ``AsyncLLM``, an actor around one."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ckpt_transport import ConfigError, EngineError
from ckpt_transport.spi import NO_PAUSE
from ckpt_transport_vllm.control import PAUSES, VllmControl
from ckpt_transport_vllm.object_calls import ObjectCalls, is_remote

CALL_SECONDS = 60.0
_numbers = itertools.count(1)


class HasCollectiveRpc(Protocol):
    """What a handle is made of. Its other methods are used where they are there; see :class:`VllmHandle`."""

    @property
    def collective_rpc(self) -> Any:
        """Calls a method of every worker: ``collective_rpc(method, timeout, args, kwargs)``, with a list of answers."""


@dataclass(frozen=True, slots=True)
class PauseCalls:
    """Names the methods by which an object is paused, and what they are given beside the mode."""

    pause: str
    resume: str
    ask: str
    pause_with: Mapping[str, Any] = field(default_factory=dict)
    resume_with: Mapping[str, Any] = field(default_factory=dict)


PAUSE_CALLS = (
    PauseCalls("pause_generation", "resume_generation", "is_paused", {"clear_cache": False}),
    PauseCalls("sleep", "wake_up", "is_sleeping", {"level": 0}, {"tags": ["scheduling"]}),
)
"""Of vLLM's ``AsyncLLM`` and ``LLM``, in this order. At level 0 nothing but the scheduling of requests sleeps."""
CACHES: Mapping[str, Mapping[str, Any]] = {
    "reset_prefix_cache": {"reset_running_requests": True},
    "reset_mm_cache": {},
    "reset_encoder_cache": {},
}
"""Methods that drop what was computed with old weights. Running requests compute it again."""


class VllmHandle(VllmControl):
    """A vLLM that this program holds.

    Beside ``collective_rpc`` these methods of the object are used, where it has them: ``pause_generation``,
    ``resume_generation`` and ``is_paused``, or else ``sleep``, ``wake_up`` and ``is_sleeping``; ``reset_prefix_cache``,
    ``reset_mm_cache`` and ``reset_encoder_cache``; ``get_weight_version`` and ``update_weight_version``.

    Args:
        engine: the object. Its methods may be coroutine functions, or those of a Ray actor.
        loop: the event loop in which its coroutines run; by default the one that runs here.

    Raises:
        ConfigError: the object has no ``collective_rpc``, or answers in an event loop and none runs here.
    """

    resume_hint = "call its resume_generation(), or wake_up(), when it may serve"

    def __init__(self, engine: HasCollectiveRpc, loop: asyncio.AbstractEventLoop | None = None) -> None:
        kind = type(engine).__name__
        method = getattr(engine, "collective_rpc", None)
        if method is None:
            raise ConfigError(f"a {kind} is no vLLM: give a URL, or an object that has collective_rpc")
        loop = _running_loop() if loop is None else loop
        if loop is None and inspect.iscoroutinefunction(method):
            raise ConfigError(
                f"this {kind} answers in an event loop, and none runs here: make the fleet in that loop, or give it "
                "VllmHandle(engine, loop)"
            )
        self.engine = engine
        here = f"{kind} {next(_numbers)} of process {os.getpid()} on {socket.gethostname()}"
        self.name = repr(engine) if is_remote(method) else here
        self._calls = ObjectCalls(engine, self.name, loop)
        self._pausing = next((each for each in PAUSE_CALLS if self._calls.has(each.pause)), None)
        self.pause_modes = (NO_PAUSE,) if self._pausing is None else PAUSES
        self._has_answered = self._was_paused = False
        self._description: dict[str, str] | None = None

    def check_pause(self, mode: str) -> None:
        """
        Raises:
            ConfigError: requests would be held, and the object cannot hold any.
        """
        if mode in PAUSES and mode not in self.pause_modes:
            pauses = " nor ".join(each.pause for each in PAUSE_CALLS)
            raise ConfigError(
                f"{self.name} has neither {pauses}, so its requests cannot be held: choose the pause 'none', which "
                "holds forward passes only"
            )

    # -- what it is -----------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Wait until it answers for the first time, as an actor that starts does late."""
        if not self._has_answered:
            self._calls.call("collective_rpc", timeout, "__dir__")
            self._has_answered = True

    @property
    def parallel_config(self) -> Mapping[str, Any]:
        """Of an ``LLM`` and an ``AsyncLLM``; an actor does not show it, and has one replica."""
        owners = (self.engine, getattr(self.engine, "llm_engine", None))
        configs = (config for owner in owners if (config := getattr(owner, "vllm_config", None)) is not None)
        config = next(configs, None)
        return {} if config is None else vars(config.parallel_config)

    def world_size(self) -> int:
        return int(self._describe()["workers"]) * self.replicas

    def weight_version(self) -> str:
        return str(self._ask("get_weight_version")) if self._calls.has("get_weight_version") else ""

    def is_paused(self) -> bool:
        """Whether it says so. Of one that cannot be asked only the pause is known that was asked for here."""
        pausing = self._pausing
        if pausing is None or not self._calls.has(pausing.ask):
            return self._was_paused
        return bool(self._ask(pausing.ask))

    # -- what it does ---------------------------------------------------------------------------------------------

    def pause(self, mode: str, timeout: float) -> None:
        if self._pausing is None:
            raise EngineError(f"{self.name} cannot hold its requests")
        try:
            self._calls.call(self._pausing.pause, timeout, mode=mode, **self._pausing.pause_with)
        except EngineError:
            self._calls.leave(self._pausing.resume, **self._pausing.resume_with)
            raise
        self._was_paused = True

    def resume(self) -> None:
        if self._pausing is not None:
            self._ask(self._pausing.resume, **self._pausing.resume_with)
        self._was_paused = False

    def label(self, version: str) -> None:
        for name in ("update_weight_version", "set_weight_version"):
            if self._calls.has(name):
                self._ask(name, version)
                return

    def reset_caches(self) -> None:
        for name, kwargs in CACHES.items():
            if self._calls.has(name) and self._ask(name, **kwargs) is False:
                raise EngineError(f"{self.name} could not clear a cache of what old weights have computed: {name}")

    def call_workers(self, method: str, **kwargs: Any) -> list[Any]:
        answers: list[Any] = self._ask("collective_rpc", method, kwargs=kwargs)
        return answers

    # -- asking ---------------------------------------------------------------------------------------------------

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._calls.call(method, CALL_SECONDS, *args, **kwargs)

    def _describe(self) -> Mapping[str, str]:
        """What its workers say of it, which does not change."""
        if self._description is None:
            answer: dict[str, str] = self.call_workers("ckpt_transport_describe")[0]
            if answer["error"]:
                raise EngineError(f"{self.name}: {answer['error']}")
            if answer["caches_prefixes"] and not self._calls.has("reset_prefix_cache"):
                raise EngineError(
                    f"{self.name} caches prefixes, and has no reset_prefix_cache to drop old keys and values with: "
                    "give the object that method, or start vLLM with enable_prefix_caching=False"
                )
            self._description = answer
        return self._description


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
