"""One running vLLM, wherever it is reached: behind a URL, or through a Python object."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from ckpt_transport.spi import NO_PAUSE, DrivenEngine
from ckpt_transport_vllm.plugin import ATTACH

PAUSES = ("keep", "wait", "abort", NO_PAUSE)


class VllmControl(DrivenEngine):
    """Calls one running vLLM and its workers."""

    pause_modes: tuple[str, ...] = PAUSES

    @abstractmethod
    def call_workers(self, method: str, **kwargs: Any) -> list[Any]:
        """Call a method on every rank; the answers by rank.

        One that a worker does not have must not be called: with several ranks vLLM takes what the others answer to it
        for answers to its next call.
        """

    def has_extended_workers(self) -> bool:
        """Whether workers have the methods of the worker extension. Every worker answers to this question."""
        return ATTACH in self.call_workers("__dir__")[0]
