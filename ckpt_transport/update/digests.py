"""A member of an update says the digests of bytes that it owns, or compares those of bytes that its engine gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def begin(
    schedule: RankSchedule,
    channel: Control,
    extents: Mapping[int, Backing],
    engine: Engine | None,
    wake: Callable[[], None],
) -> Digests:
    """Digests of a round that has to bring everything: they are compared beside the engine, at the latest at its end.

    Args:
        schedule: of this rank.
        channel: between owners and sinks.
        extents: of this rank, by number.
        engine: where weights go; None on a source.
        wake: ends the wait of whoever waits for a digest, from any thread.
    """
    if engine is None:
        return OwnerDigests(schedule, channel, extents, wake)
    return SinkDigests(schedule, channel, engine.label, wake)


def begin_each(
    schedule: RankSchedule,
    channel: Control,
    extents: Mapping[int, Backing],
    engine: Engine | None,
    wake: Callable[[], None],
) -> Digests:
    """Digests of a round that another may follow: those of a bucket are compared before an engine is given it.

    Args: as those of :func:`begin`.
    """
    if engine is None:
        return PromptOwnerDigests(schedule, channel, extents, wake)
    return FirstSinkDigests(schedule, channel, engine.label, wake)
