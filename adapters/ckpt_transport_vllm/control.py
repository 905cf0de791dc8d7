"""One running vLLM, wherever it is reached: behind a URL, or through a Python object."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from ckpt_transport.spi import NO_PAUSE, DrivenEngine
from ckpt_transport_vllm.plugin import ATTACH
from ckpt_transport_vllm.replicas import replicas_of

PAUSES = ("keep", "wait", "abort", NO_PAUSE)


class VllmControl(DrivenEngine):
    """Calls one running vLLM and its workers."""

    pause_modes: tuple[str, ...] = PAUSES

    @property
    @abstractmethod
    def parallel_config(self) -> Mapping[str, Any]:
        """How vLLM has spread the model, in its own words; empty where that cannot be seen."""

    @property
    def replicas(self) -> int:
        """How many data-parallel replicas are updated as one engine."""
        return replicas_of(self.parallel_config)

    @property
    def is_near(self) -> bool:
        """Whether its workers are on this host."""
        return True

    @abstractmethod
    def call_workers(self, method: str, **kwargs: Any) -> list[Any]:
        """Call a method on every rank; the answers by rank, of the first data-parallel replica only.

        One that a worker does not have must not be called: with several ranks vLLM takes what the others answer to it
        for answers to its next call.
        """

    def has_extended_workers(self) -> bool:
        """Whether workers have the methods of the worker extension. Every worker answers to this question."""
        return ATTACH in self.call_workers("__dir__")[0]
