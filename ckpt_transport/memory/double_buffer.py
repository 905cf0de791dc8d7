"""A double buffer brings bytes to a device while those before them are still read there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

LARGEST = 128 << 20
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

    def stage(self, raw: torch.Tensor) -> torch.Tensor:
        """Copy ``raw`` to the device, for what is enqueued on the current stream before the next call.

        Args:
            raw: uint8, one-dimensional; nobody may change it until what is so enqueued has ended.

        Returns: the bytes on the device; ``raw`` itself, if it is there.
        """
        if raw.device == self._device:
            return raw
        if raw.numel() > LARGEST:
            return raw.to(self._device, non_blocking=True)
        reading = torch.cuda.current_stream(self._device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._buffers = [StagingBuffer(torch.empty(0, dtype=torch.uint8, device=self._device)) for _ in range(2)]
        buffer, other = self._buffers
        self._buffers = [other, buffer]
        other.read.record(reading)
        if buffer.memory.numel() < raw.numel():
            size = 1 << (raw.numel() - 1).bit_length()
            buffer.memory = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._stream.wait_stream(reading)
        self._stream.wait_event(buffer.read)
        staged = buffer.memory[: raw.numel()]
        with torch.cuda.stream(self._stream):
            staged.copy_(raw, non_blocking=True)
        reading.wait_stream(self._stream)
        return staged

    def close(self) -> None:
        """Give the memory back. Idempotent; another :meth:`stage` takes new memory."""
        self._buffers, self._stream = [], None
