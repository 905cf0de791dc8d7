"""A fence passes when work that was enqueued on a device has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Protocol, TypeVar

import torch

DRAIN_SECONDS = 5.0
"""Longest wait for work that nothing holds up any more."""
DRAIN_POLL_SECONDS = 0.0005
Result = TypeVar("Result")


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


def beside(device: torch.device, work: str, act: Callable[[], Result]) -> Result:
    """Do something that enqueues work on the current stream of ``device``, and wait for its end on the host.

    The stream is one for this kind of work. So what others enqueue meanwhile on the stream that was current, a forward
    pass say, does not wait for it; the work itself begins after what they had enqueued before.

    Raises: what ``act`` does, when the stream is empty.
    """
    if device.type != "cuda":
        return act()
    stream = stream_for(work, device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            done = act()
    except BaseException:
        drain(stream)
        raise
    fence_on(stream).synchronize()
    return done


def drain(stream: torch.cuda.Stream) -> None:
    """Wait until ``stream`` is empty, so that memory it works on may be freed. The wait ends if the device hangs."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while not stream.query() and time.monotonic() < deadline:
        time.sleep(DRAIN_POLL_SECONDS)
