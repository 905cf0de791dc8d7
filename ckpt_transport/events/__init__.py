"""What becomes of versions is told to whoever watches: the log, metrics, programs of users."""

from __future__ import annotations

from ckpt_transport.events.observers import observe, tell
from ckpt_transport.events.values import Event, ServingChanged, UpdateEnded

__all__ = ["Event", "ServingChanged", "UpdateEnded", "observe", "tell"]
