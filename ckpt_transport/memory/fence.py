"""When work that was enqueued on a device has ended."""

from __future__ import annotations

from typing import Protocol

import torch


class Fence(Protocol):
    """A point in a device's queue of work."""

    def synchronize(self) -> None:
        """Wait until everything before it has ended."""


def fence(device: torch.device) -> Fence | None:
    """The end of what this thread has enqueued on the current stream of ``device``; None where nothing is enqueued."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
