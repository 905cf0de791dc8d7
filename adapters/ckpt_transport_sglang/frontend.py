"""Answers calls where SGLang has its HTTP interface: what takes several of SGLang's routes is one request here.

A call that is none of these goes on to the schedulers, as all calls do in a process of SGLang that loads no plugins:
one of several that tokenize. So the answer to ``attach`` says whether this is there.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ckpt_transport_sglang.pause_owners import PauseOwners
from ckpt_transport_sglang.plugin import CALL

YES = "yes"
FRONT, HELD, BY_OTHERS = "front", "held", "by_others"
"""What answers say beside those of the ranks: that these calls are answered; whether requests were held when they were
to be let go; whether others have paused the engine, which then stays so."""
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
    front = _Front(ask_ranks, manager, asked, request)
    match given.pop("call"):
        case "attach":
            return await front.attach(given)
        case "pause":
            return await front.pause(**given)
        case "serve":
            return await front.serve(**given)
        case "resume":
            return await front.resume()
        case name:
            return await front.call(name, given)


class _Front:
    """Carries calls out as :func:`answer` was asked to."""

    def __init__(self, ask_ranks: AskRanks, manager: Any, asked: Any, request: Any) -> None:
        self._ask_ranks, self._manager, self._asked, self._request = ask_ranks, manager, asked, request
        self._pauses = PauseOwners.of(manager)

    async def call(self, name: str, given: Mapping[str, str], **beside: str) -> tuple[bool, str, Any, Any]:
        """Call every rank, and say something ``beside`` what they say."""
        self._asked.action = CALL + json.dumps({"call": name, **given})
        done, said, *rest = await self._ask_ranks(self._manager, self._asked, self._request)
        return done, json.dumps([{**each, **beside} for each in json.loads(said)]) if done else said, *rest

    async def attach(self, given: Mapping[str, str]) -> tuple[bool, str, Any, Any]:
        return await self.call("attach", given, **{FRONT: YES})

    async def pause(self, mode: str) -> tuple[bool, str, Any, Any]:
        """Hold requests, and have the ranks say whether they have heard of it."""
        await self._pauses.begin(mode)
        return await self.call("describe", {}, **self._told())

    async def resume(self) -> tuple[bool, str, Any, Any]:
        await self._pauses.end()
        return await self.call("describe", {}, **self._told())

    async def serve(self, version: str, resume: str) -> tuple[bool, str, Any, Any]:
        """Have the ranks drop what old weights have computed and name the new ones, and then serve requests again.

        Args:
            version: the name; empty for the one that they have.
            resume: :data:`YES`, or empty to leave requests as they are. They stay held also where a rank has failed.
        """
        done, said, *rest = await self.call("renew", {"version": version})
        answers = json.loads(said) if done else []
        held = YES if self._manager.is_pause else ""
        if done and not any(each["error"] for each in answers):
            if version:
                self._manager._update_weight_version_if_provided(version)
            if resume:
                await self._pauses.end()
        return done, json.dumps([{**each, HELD: held, **self._told()} for each in answers]) if done else said, *rest

    def _told(self) -> dict[str, str]:
        return {BY_OTHERS: YES if self._pauses.by_others else ""}
