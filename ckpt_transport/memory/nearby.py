"""Bringing bytes to a device while those before them are still read there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

LARGEST = 128 << 20
"""Bytes of the largest room."""


@dataclass
class _Room:
    """Attributes:
    memory: uint8, one-dimensional; a power of two, so that it grows seldom, and what it grew out of stays little.
    read: when its last bytes have been read.
    """

    memory: torch.Tensor
    read: torch.cuda.Event = field(default_factory=torch.cuda.Event)


class Nearby:
    """Two rooms on a device, which runs of bytes from elsewhere take in turns.

    They are copied on a stream of its own. So a run is on its way while the one before it is read, and the link to the
    device carries one long copy after the other, whatever is made of them there. A run too large for a room gets memory
    of its own, and waits its turn.

    Args:
        device: where bytes are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rooms: list[_Room] = []
        self._stream: torch.cuda.Stream | None = None

    def bring(self, raw: torch.Tensor) -> torch.Tensor:
        """``raw`` on the device, for what is enqueued on the current stream before the next call.

        Args:
            raw: uint8, one-dimensional; must stay as it is until what is so enqueued has ended. What is on the device
                already is returned as it is.
        """
        if raw.device == self._device:
            return raw
        if raw.numel() > LARGEST:
            return raw.to(self._device, non_blocking=True)
        reading = torch.cuda.current_stream(self._device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._rooms = [_Room(torch.empty(0, dtype=torch.uint8, device=self._device)) for _ in range(2)]
        room, other = self._rooms
        self._rooms = [other, room]
        other.read.record(reading)
        if room.memory.numel() < raw.numel():
            size = 1 << (raw.numel() - 1).bit_length()
            room.memory = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._stream.wait_stream(reading)
        self._stream.wait_event(room.read)
        near = room.memory[: raw.numel()]
        with torch.cuda.stream(self._stream):
            near.copy_(raw, non_blocking=True)
        reading.wait_stream(self._stream)
        return near

    def close(self) -> None:
        """Give the rooms back. Idempotent; another :meth:`bring` makes new ones."""
        self._rooms, self._stream = [], None
