"""What becomes of versions is told to whoever watches: the log, metrics, programs of users."""

from __future__ import annotations

from ckpt_transport.events.context import about, speaking_for
from ckpt_transport.events.observers import observe, tell
from ckpt_transport.events.traces import step, trace_by, trace_of
from ckpt_transport.events.values import BytesReceived, Event, ServingChanged, StepEnded, UpdateBegan, UpdateEnded

__all__ = [
    "BytesReceived",
    "Event",
    "ServingChanged",
    "StepEnded",
    "UpdateBegan",
    "UpdateEnded",
    "about",
    "observe",
    "speaking_for",
    "step",
    "tell",
    "trace_by",
    "trace_of",
]
