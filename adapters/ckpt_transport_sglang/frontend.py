"""Answers calls where SGLang has its HTTP interface: what takes several of SGLang's routes is one request here.

A call that is none of these goes on to the schedulers, as all calls do in a process of SGLang that loads no plugins:
one of several that tokenize. So whoever calls asks first whether this is there, by :data:`ASKED`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ckpt_transport_sglang.plugin import CALL

HELD, YES = "held", "yes"
"""What the answer to ``serve`` says beside those of the ranks: whether requests were held until then."""
ASKED = "attach", "front"
"""A call of the ranks, and what it is told here: that these calls are answered."""
AskRanks = Callable[..., Awaitable[tuple[bool, str, Any, Any]]]
"""SGLang's own method: sends what is asked to all schedulers, and waits for what they say."""


async def answer(ask_ranks: AskRanks, manager: Any, asked: Any, request: Any) -> tuple[bool, str, Any, Any]:
    """Carry out a call, or have the ranks do so.

    Args:
        ask_ranks: of the manager's class.
        manager: SGLang's, through which all requests go to schedulers.
        asked: what ``/weights_checker`` was asked for.
        request: in which.
    """
    given = json.loads(asked.action.removeprefix(CALL))
    ranks = _Ranks(ask_ranks, manager, asked, request)
    match given.pop("call"):
        case "pause":
            return await _pause(ranks, manager, **given)
        case "serve":
            return await _serve(ranks, manager, **given)
        case name:
            call, said = ASKED
            return await ranks.call(name, {**given, said: YES} if name == call else given)


class _Ranks:
    """Calls schedulers as :func:`answer` was asked to."""

    def __init__(self, ask_ranks: AskRanks, manager: Any, asked: Any, request: Any) -> None:
        self._ask_ranks, self._manager, self._asked, self._request = ask_ranks, manager, asked, request

    async def call(self, name: str, given: Mapping[str, str]) -> tuple[bool, str, Any, Any]:
        self._asked.action = CALL + json.dumps({"call": name, **given})
        return await self._ask_ranks(self._manager, self._asked, self._request)


async def _pause(ranks: _Ranks, manager: Any, mode: str) -> tuple[bool, str, Any, Any]:
    """Hold requests, in a mode of SGLang that waits for none, and have the ranks say whether they have heard of it."""
    from sglang.srt.managers.io_struct import PauseGenerationReqInput

    await manager.pause_generation(PauseGenerationReqInput(mode=mode))
    return await ranks.call("describe", {})


async def _serve(ranks: _Ranks, manager: Any, version: str, resume: str) -> tuple[bool, str, Any, Any]:
    """Have the ranks drop what old weights have computed and name the new ones, and then serve requests again.

    Args:
        ranks, manager: as they are.
        version: the name; empty for the one that they have.
        resume: :data:`YES`, or empty to leave requests as they are. They stay held also where a rank has failed.
    """
    done, said, *rest = await ranks.call("renew", {"version": version})
    answers = json.loads(said) if done else []
    held = YES if manager.is_pause else ""
    if done and not any(each["error"] for each in answers):
        if version:
            manager._update_weight_version_if_provided(version)
        if resume:
            from sglang.srt.managers.io_struct import ContinueGenerationReqInput

            await manager.continue_generation(ContinueGenerationReqInput(torch_empty_cache=False))
    return done, json.dumps([{**each, HELD: held} for each in answers]) if done else said, *rest
