"""Makes every SGLang updatable that runs in an environment with this package, and imports nothing before it is asked.

SGLang calls :func:`register` in each of its processes, by the entry point group ``sglang.srt.plugins``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

SCHEDULER = "sglang.srt.managers.scheduler"
CHECK_WEIGHTS = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager.check_weights"
CALL = "ckpt_transport:"
"""How an action begins that is ours, of those that the route ``/weights_checker`` takes to every scheduler."""


def register() -> None:
    """The entry point. Only processes that have the scheduler's module are concerned."""
    if SCHEDULER not in sys.modules:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(CHECK_WEIGHTS, check_weights, HookType.AROUND)


def check_weights(original: Callable[..., Any], manager: Any, asked: Any) -> Any:
    """Answer what is asked of this adapter; the rest is SGLang's."""
    if not asked.action.startswith(CALL):
        return original(manager, asked)
    from ckpt_transport_sglang.calls import answer

    return answer(manager, asked.action.removeprefix(CALL))
