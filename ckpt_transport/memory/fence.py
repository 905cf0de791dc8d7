"""A fence passes when work that was enqueued on a device has ended."""

from __future__ import annotations

import time
from functools import cache
from typing import Protocol

import torch

DRAIN_SECONDS = 5.0
"""Longest wait for work that nothing holds up any more."""
DRAIN_POLL_SECONDS = 0.0005


class Fence(Protocol):
    """A point in a device's queue of work."""

    def synchronize(self) -> None:
        """Wait until everything before it has ended."""

    def query(self) -> bool:
        """Whether everything before it has ended."""

    def wait(self, stream: torch.cuda.Stream) -> None:
        """Have what is enqueued on ``stream`` from now on begin after everything before it. Returns at once."""


def fence(device: torch.device) -> Fence | None:
    """Record the end of what this thread has enqueued on the current stream of ``device``; None for the host."""
    return fence_on(torch.cuda.current_stream(device)) if device.type == "cuda" else None


def fence_on(stream: torch.cuda.Stream) -> Fence:
    """Record the end of what has been enqueued on ``stream``."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


@cache
def stream_for(work: str, device: torch.device) -> torch.cuda.Stream:
    """The stream of ``device`` on which nothing is enqueued but one kind of work."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def drain(stream: torch.cuda.Stream) -> None:
    """Wait until ``stream`` is empty, so that memory it works on may be freed. The wait ends if the device hangs."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while not stream.query() and time.monotonic() < deadline:
        time.sleep(DRAIN_POLL_SECONDS)
