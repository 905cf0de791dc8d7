"""What ranks have recorded becomes one timeline when somebody looks at it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import overload

import msgspec

from ckpt_transport.decoding import UNREADABLE
from ckpt_transport.execution.timeline import StageEvent

logger = logging.getLogger(__name__)
encode_events = msgspec.msgpack.Encoder().encode
"""What a rank has recorded, as the bytes that it sends to the coordinator."""
_decode = msgspec.msgpack.Decoder(list[StageEvent]).decode


class GatheredTimeline(Sequence[StageEvent]):
    """Holds the stages of all ranks, by the time at which each begins.

    To read what a fleet has recorded takes its coordinator longer than all else that members say in an update, and
    few updates are looked at. So it is read at the first look. What cannot be read is left out, and logged.

    Args:
        own: recorded by this process.
        sent: what other ranks have recorded, each as :data:`encode_events` makes it, by rank.
    """

    def __init__(self, own: Sequence[StageEvent], sent: Mapping[int, bytes]) -> None:
        self._own, self._sent = own, sent

    @cached_property
    def _events(self) -> list[StageEvent]:
        events = list(self._own)
        for rank, encoded in self._sent.items():
            try:
                events += _decode(encoded)
            except UNREADABLE as error:
                logger.warning("the timeline lacks what rank %d has recorded, which is unreadable: %s", rank, error)
        return sorted(events, key=attrgetter("start"))

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, at: int) -> StageEvent: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[StageEvent]: ...

    def __getitem__(self, at: int | slice) -> StageEvent | Sequence[StageEvent]:
        return self._events[at]
