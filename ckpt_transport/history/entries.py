"""The lines of a history are plain values."""

from __future__ import annotations

import msgspec

from ckpt_transport.events import UpdateEnded
from ckpt_transport.events.values import Event


class StageRow(msgspec.Struct, frozen=True):
    """When one rank was busy with one kind of stage.

    Attributes:
        label: what people call the rank.
        kind: ``fill``, ``transfer`` or ``apply``.
        spans: from when to when, in seconds since the timeline's start, ascending.
    """

    label: str
    kind: str
    spans: tuple[tuple[float, float], ...]


class Timeline(Event, frozen=True, tag="timeline"):
    """The timeline of an update, as fine as a picture of it needs.

    Attributes:
        update: the name that its members share.
        seconds: from the beginning of the first stage to the end of the last one.
        rows: of the ranks that are shown, in their order.
        more: how many ranks are not.
    """

    update: str
    seconds: float
    rows: tuple[StageRow, ...]
    more: int = 0


class PastUpdate(msgspec.Struct):
    """What is known of an update that has ended; its timeline is None where no stage has ended."""

    ended: UpdateEnded
    timeline: Timeline | None = None
