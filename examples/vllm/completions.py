"""Completions of a vLLM: streamed ones that keep it busy, and greedy ones that tell its weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import httpx
import msgspec

from examples.shared.clients import Answer
from tests.support.serving import ServeError
from tests.support.vllm_server import COMPLETIONS, Serve, greedy

PROMPTS = ("What is new?", "0123456789", "The quick brown fox")
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


@dataclass(frozen=True, slots=True)
class Weights:
    """What tells the weights of a server.

    Attributes:
        version: their name.
        tokens: greedy completions of :data:`PROMPTS`.
        checksums: of every parameter, by rank and name.
    """

    version: str
    tokens: tuple[tuple[int, ...], ...]
    checksums: dict[str, str]

    @classmethod
    def of(cls, version: str, server: Serve) -> Self:
        """Ask a server that has nothing else to do: what is computed together may be rounded differently."""
        tokens = tuple(tuple(server.complete(prompt)) for prompt in PROMPTS)
        ranks = enumerate(server.checksums())
        return cls(
            version, tokens, {f"rank {rank} {name}": found for rank, names in ranks for name, found in names.items()}
        )

    def differences(self, other: Weights) -> list[str]:
        """Parameters that only one of both has, or that have other checksums."""
        names = sorted(self.checksums.keys() | other.checksums.keys())
        return [name for name in names if self.checksums.get(name) != other.checksums.get(name)]

    def problems(self, old: Weights, expected: Weights) -> Iterator[str]:
        """What does not hold of these weights.

        Args:
            old: those before the update.
            expected: those of a server that loaded the new version from disk.
        """
        if self.tokens != expected.tokens:
            yield "completions are not those of a vLLM that loaded the version from disk"
        if self.tokens == old.tokens:
            yield "both versions give the same completions"
        different = self.differences(expected)
        if different or not expected.checksums:
            yield f"{len(different)} checksums differ from a vLLM that loaded it from disk: {', '.join(different[:5])}"
