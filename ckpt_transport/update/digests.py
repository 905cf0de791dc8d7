"""A member of an update says the digests of bytes that it owns, or compares those of bytes that its engine gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ckpt_transport.engine.engine import Engine
from ckpt_transport.execution import (
    Digests,
    FirstSinkDigests,
    OwnerDigests,
    PromptOwnerDigests,
    RankSchedule,
    SinkDigests,
)
from ckpt_transport.memory import Backing
from ckpt_transport.transports.interface import Control


@dataclass(frozen=True)
class DigestKinds:
    """What owners and sinks of a round do with digests.

    Attributes:
        owner: of a rank that says them.
        sink: of one that compares them.
    """

    owner: type[OwnerDigests]
    sink: type[SinkDigests]

    def begin(
        self,
        schedule: RankSchedule,
        channel: Control,
        extents: Mapping[int, Backing],
        engine: Engine | None,
        wake: Callable[[], None],
    ) -> Digests:
        """
        Args:
            schedule: of this rank.
            channel: between owners and sinks.
            extents: of this rank, by number.
            engine: where weights go; None on a source.
            wake: ends the wait of whoever waits for a digest, from any thread.
        """
        if engine is None:
            return self.owner(schedule, channel, extents, wake)
        return self.sink(schedule, channel, engine.label, wake)


BESIDE = DigestKinds(OwnerDigests, SinkDigests)
"""Of a round that has to bring everything: they are compared beside the engine, at the latest at its end."""
BEFORE = DigestKinds(PromptOwnerDigests, FirstSinkDigests)
"""Of a round that another may follow: those of a bucket are compared before an engine is given it."""
