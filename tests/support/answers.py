"""What tests ask a served child, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ckpt_transport.testing.engine import FleetUnderTest

PATIENCE = 300.0
"""Seconds in which what happens within one must have happened, however busy the machine is."""
PROMPTS = ("hello", "What is a bucket?", "0123456789")


@dataclass(frozen=True)
class Answers:
    """What a server says: greedy tokens for each prompt, and the checksums of each rank."""

    tokens: tuple[tuple[int, ...], ...]
    checksums: tuple[dict[str, str], ...]


class Served(Protocol):
    """A server, and the checkpoints that it serves."""

    def checkpoint(self, seed: int) -> Path: ...
    def complete(self, prompt: str = ..., tokens: int = ..., timeout: float = ...) -> list[int]: ...


class ServedUnderTest(FleetUnderTest):
    """A server under the conformance kit. It is asked the first prompt at whose first token versions 1 and 2 differ.

    Args:
        replica: the server.
        answers: what versions 1 and 2 say on a fresh start.
    """

    def __init__(self, replica: Served, answers: Sequence[Answers]) -> None:
        self._served, self._answers = replica, answers
        self._asked = next(
            number for number, _ in enumerate(PROMPTS) if len({each.tokens[number][0] for each in answers}) == 2
        )

    def expected(self, version: int) -> object:
        return self._answers[version - 1].tokens[self._asked][0]

    def ask(self) -> object:
        return self._served.complete(PROMPTS[self._asked], tokens=1, timeout=PATIENCE)[0]

    def close(self) -> None:
        self.fleet.close()
        self.driven.close()
