"""Knows whether the weights of a worker have memory: vLLM's sleep mode takes it away on GPUs."""

from __future__ import annotations

import sys

from ckpt_transport import UnwritableError

ALLOCATOR = "vllm.device_allocator.cumem"
WEIGHTS = "weights"


def check_awake(label: str) -> None:
    """Refuse to write to weights that have no memory, which would end the engine.

    Raises:
        UnwritableError: they sleep; says how they are woken.
    """
    module = sys.modules.get(ALLOCATOR)
    allocator = getattr(getattr(module, "CuMemAllocator", None), "instance", None)
    if allocator is None:
        return
    if any(each.tag == WEIGHTS and getattr(each, "is_asleep", False) for each in allocator.pointer_to_data.values()):
        raise UnwritableError(
            f"{label} sleeps, and its weights have no memory: wake them before, by POST /wake_up?tags=weights or "
            "llm.wake_up(tags=['weights'])"
        )
