"""A double buffer brings bytes to a device while those before them are still read there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ckpt_transport.memory.partial_copy import PartialCopy
from ckpt_transport.memory.runs import MemoryRun, Runs, devices_of, end_of

FindPart = Callable[[], PartialCopy | None]
"""Finds what of a bucket is wanted; None for all of it. Called where bytes are brought."""

LARGEST = 512 << 20
"""Bytes of the largest staging buffer."""


@dataclass
class StagingBuffer:
    """Memory on a device through which bytes from elsewhere pass.

    Attributes:
        memory: uint8, one-dimensional; its size is a power of two, so it grows seldom and leaves little behind.
        read: passes when the last bytes in it have been read.
    """

    memory: torch.Tensor
    read: torch.cuda.Event = field(default_factory=torch.cuda.Event)


class DoubleBuffer:
    """Two staging buffers on a device, which bytes from elsewhere pass through in turns.

    It copies them on a stream of its own. So one copy is on its way while the bytes before it are read, and the link to
    the device carries one long copy after the other, whatever is made of them there. What is too large for a staging
    buffer gets memory of its own, and waits its turn.

    Args:
        device: where bytes are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[StagingBuffer] = []
        self._stream: torch.cuda.Stream | None = None

    def stage(self, runs: Runs, part: FindPart = lambda: None) -> Runs:
        """Copy ``runs`` to the device, for what is enqueued on the current stream before the next call.

        Args:
            runs: of one bucket; nobody may change them until what is so enqueued has ended.
            part: what is read of them.

        Returns: one run on the device, where each byte has its place in the bucket; ``runs`` themselves, if they are
            there, or the device is the host: its copies read any memory. What was not wanted has any value.
        """
        if self._device.type == "cpu" or devices_of(runs) == {self._device}:
            return runs
        nbytes, wanted = end_of(runs), part()
        if nbytes > LARGEST:
            return _copied(runs, wanted, torch.empty(nbytes, dtype=torch.uint8, device=self._device))
        reading = torch.cuda.current_stream(self._device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._buffers = [StagingBuffer(torch.empty(0, dtype=torch.uint8, device=self._device)) for _ in range(2)]
        buffer, other = self._buffers
        self._buffers = [other, buffer]
        other.read.record(reading)
        if buffer.memory.numel() < nbytes:
            size = 1 << (nbytes - 1).bit_length()
            buffer.memory = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._stream.wait_stream(reading)
        self._stream.wait_event(buffer.read)
        with torch.cuda.stream(self._stream):
            staged = _copied(runs, wanted, buffer.memory[:nbytes])
        reading.wait_stream(self._stream)
        return staged

    def close(self) -> None:
        """Give the memory back. Idempotent; another :meth:`stage` takes new memory."""
        self._buffers, self._stream = [], None


def _copied(runs: Runs, wanted: PartialCopy | None, into: torch.Tensor) -> Runs:
    """Enqueue a copy of what is wanted of a bucket into one run; return that."""
    if wanted is not None:
        wanted.run(runs, into)
    else:
        for at, raw in runs:
            into[at : at + raw.numel()].copy_(raw, non_blocking=True)
    return (MemoryRun(0, into),)
