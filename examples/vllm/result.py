"""What the demonstration found, and whether it is what was promised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from ckpt_transport.service.fleet import FleetReport
from examples.vllm.clients import Completion
from tests.support.vllm_server import Serve

PROMPTS = ("What is new?", "0123456789", "The quick brown fox")


@dataclass(frozen=True, slots=True)
class Answers:
    """What tells the weights of a server.

    Attributes:
        tokens: greedy completions of :data:`PROMPTS`.
        checksums: of every parameter, by rank and name.
    """

    tokens: tuple[tuple[int, ...], ...]
    checksums: dict[str, str]

    @classmethod
    def of(cls, server: Serve) -> Self:
        """Ask a server that has nothing else to do: what is computed together may be rounded differently."""
        tokens = tuple(tuple(server.complete(prompt)) for prompt in PROMPTS)
        ranks = enumerate(server.checksums())
        return cls(tokens, {f"rank {rank} {name}": found for rank, names in ranks for name, found in names.items()})

    def differences(self, other: Answers) -> list[str]:
        """Parameters that only one of both has, or that have other checksums."""
        names = sorted(self.checksums.keys() | other.checksums.keys())
        return [name for name in names if self.checksums.get(name) != other.checksums.get(name)]


@dataclass(frozen=True, slots=True)
class Updated:
    """One update, and what was seen of it.

    Attributes:
        old, new: names of versions.
        transport: that was asked for.
        done: what the fleet reports.
        served: the version that the server names afterwards.
        completions: that clients asked for, before, during and after.
        began, held, ended: of the update; ``held`` is when its first bytes had arrived, with all requests on hold. On
            the monotonic clock, in seconds.
        before, after: what the server answered.
        expected: what a vLLM answers that loaded the new version from disk.
    """

    old: str
    new: str
    transport: str
    done: FleetReport
    served: str
    completions: Sequence[Completion]
    began: float
    held: float
    ended: float
    before: Answers
    after: Answers
    expected: Answers

    def spans(self) -> dict[str, list[Completion]]:
        """The completions by when they were under way."""
        return {
            "before": [each for each in self.completions if each.end <= self.began],
            "updating": [each for each in self.completions if each.start < self.ended and each.end > self.began],
            "after": [each for each in self.completions if each.start >= self.ended],
        }

    def frozen(self) -> list[Completion]:
        """The completions that were under way while requests were held."""
        return [each for each in self.completions if each.start < self.held < each.end]

    def problems(self) -> Iterator[str]:
        """What did not hold."""
        failed = [each.error for each in self.completions if each.error]
        if failed:
            yield f"{len(failed)} of {len(self.completions)} requests failed: {'; '.join(sorted(set(failed)))}"
        for name, span in self.spans().items():
            if not span:
                yield f"no request was served {name}"
        if not self.frozen():
            yield "no request was under way when weights changed"
        if not all(self.done.held.values()):
            yield "requests were not held"
        yield from self.done.problems
        used = {route.transport for route in self.done.update.plan.routes}
        if used != {self.transport}:
            yield f"{' and '.join(sorted(used))} carried the update, and {self.transport} was asked for"
        if self.served != self.new:
            yield f"the server names the version '{self.served}' that it serves"
        if self.after.tokens != self.expected.tokens:
            yield f"completions are not those of a vLLM that loaded {self.new} from disk"
        if self.after.tokens == self.before.tokens:
            yield f"{self.old} and {self.new} give the same completions"
        different = self.after.differences(self.expected)
        if different or not self.expected.checksums:
            yield f"{len(different)} checksums are not those of {self.new} loaded from disk: {', '.join(different[:5])}"
