"""Makes every SGLang updatable that runs in an environment with this package, and imports nothing before it is asked.

SGLang calls :func:`register` in each of its processes, by the entry point group ``sglang.srt.plugins``.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

SCHEDULER = "sglang.srt.managers.scheduler"
CHECK_WEIGHTS = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager.check_weights"
FRONTEND = "sglang.srt.managers.tokenizer_control_mixin"
ASK_RANKS = f"{FRONTEND}.TokenizerControlMixin.check_weights"
MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
PAUSE, GO_ON = f"{MANAGER}.pause_generation", f"{MANAGER}.continue_generation"
CALL = "ckpt_transport:"
"""How an action begins that is ours, of those that the route ``/weights_checker`` takes to every scheduler."""


def register() -> None:
    """The entry point. Schedulers are concerned, and the first process, which has the HTTP interface.

    That one may load plugins before it imports what is hooked there, which SGLang then does by itself.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if SCHEDULER in sys.modules:
        HookRegistry.register(CHECK_WEIGHTS, check_weights, HookType.AROUND)
    if FRONTEND in sys.modules or multiprocessing.parent_process() is None:
        HookRegistry.register(ASK_RANKS, ask_ranks, HookType.AROUND)
        HookRegistry.register(PAUSE, functools.partial(noted, True), HookType.AROUND)
        HookRegistry.register(GO_ON, functools.partial(noted, False), HookType.AROUND)


def check_weights(original: Callable[..., Any], manager: Any, asked: Any) -> Any:
    """Answer what is asked of this adapter; the rest is SGLang's."""
    if not asked.action.startswith(CALL):
        return original(manager, asked)
    from ckpt_transport_sglang.calls import answer

    return answer(manager, asked.action.removeprefix(CALL))


async def ask_ranks(original: Callable[..., Any], manager: Any, asked: Any, request: Any = None) -> Any:
    """The same, where SGLang has its HTTP interface."""
    if not asked.action.startswith(CALL):
        return await original(manager, asked, request)
    from ckpt_transport_sglang.frontend import answer

    return await answer(original, manager, asked, request)


async def noted(pauses: bool, original: Callable[..., Any], manager: Any, asked: Any) -> Any:
    """Note who pauses the engine, or has it go on, and let SGLang do that."""
    from ckpt_transport_sglang.pause_owners import PauseOwners

    PauseOwners.of(manager).note(asked, pauses)
    return await original(manager, asked)
