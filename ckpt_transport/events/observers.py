"""Observers are called with each event of this process, one after the other, by the thread in which it happens."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from ckpt_transport.events.values import Event

logger = logging.getLogger("ckpt_transport.events")
Observer = Callable[[Event], None]

_observers: dict[object, Observer] = {}


def observe(observer: Observer) -> Callable[[], None]:
    """Have ``observer`` called with each event from now on, until the function that is returned is called.

    It must return soon: an update waits for it. What it raises is logged, and changes nothing.
    """
    key = object()
    _observers[key] = observer

    def stop() -> None:
        _observers.pop(key, None)

    return stop


def tell(event: Event) -> None:
    """Log an event, and tell all observers."""
    logger.log(event.level, "%s", _Line(event), extra={"event": event})
    for observer in tuple(_observers.values()):
        try:
            observer(event)
        except Exception:
            logger.warning("an observer of events failed", exc_info=True)


class _Line:
    """An event as one line of JSON, made when the log wants it."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __str__(self) -> str:
        return msgspec.json.encode(self._event).decode()
