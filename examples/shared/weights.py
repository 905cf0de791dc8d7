"""What tells the weights of a server: greedy completions, and checksums of its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from tests.support.serving import ServedChild

PROMPTS = ("What is new?", "0123456789", "The quick brown fox")


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
    def of(cls, version: str, server: ServedChild) -> Self:
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
            yield "completions are not those of a server that loaded the version from disk"
        if self.tokens == old.tokens:
            yield "both versions give the same completions"
        different = self.differences(expected)
        if different or not expected.checksums:
            yield f"{len(different)} checksums differ from one that loaded it from disk: {', '.join(different[:5])}"
