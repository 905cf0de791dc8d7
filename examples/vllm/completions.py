"""Streamed completions of a vLLM, which keep it busy."""

from __future__ import annotations

import time

import httpx
import msgspec

from examples.shared.clients import Answer
from tests.support.serving import ServeError
from tests.support.vllm_server import COMPLETIONS, greedy

TOKENS = 24
EVENT, LAST = "data: ", "data: [DONE]"
"""How lines of a stream begin that bring tokens, and the line that brings none."""


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice]


def ask(client: httpx.Client, number: int) -> Answer:
    """Ask for a completion, token by token."""
    moments: list[float] = []
    count = 0
    with client.stream("POST", COMPLETIONS, json=greedy(f"client {number}", TOKENS, stream=True)) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith(EVENT) and line != LAST:
                event = msgspec.json.decode(line.removeprefix(EVENT), type=_Event)
                count += sum(len(choice.token_ids or ()) for choice in event.choices)
                moments.append(time.monotonic())
    if count != TOKENS:
        raise ServeError(f"it ended after {count} of {TOKENS} tokens")
    return Answer(tuple(moments))
