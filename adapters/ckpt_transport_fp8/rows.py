"""Small tensors that lie here and there in an extent, and together in memory, in rows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ckpt_transport.spi import ALIGNMENT, align_up


class Places:
    """Where rows of 256 bytes lie in an extent, in whatever version.

    Args:
        offsets: ascending, multiples of 256.
        device: where the rows will be.
    """

    def __init__(self, offsets: Sequence[int], device: torch.device) -> None:
        self._offsets = offsets
        self.numbers = torch.tensor(offsets, dtype=torch.int64, device=device) // ALIGNMENT
        """Of the rows, if the extent were rows."""

    def within(self, begin: int, end: int) -> range:
        """The rows that have bytes between ``begin`` and ``end``."""
        return range(bisect_right(self._offsets, begin - ALIGNMENT), bisect_left(self._offsets, end))

    def put(self, rows: torch.Tensor, room: torch.Tensor, offset: int) -> None:
        """Put the rows that lie at the bytes from ``offset`` on into ``room``, on the same device, as many as it holds.

        Args:
            rows: all of a version, uint8, shape ``(places, 256)``, contiguous. What of them is no tensor goes where no
                tensor is.
            room: uint8.
            offset: in the extent.
        """
        end, begin = offset + room.numel(), align_up(offset)
        touched, (first, last) = self.within(offset, end), self._whole(begin, end)
        if first < last:
            whole = room[begin - offset : begin - offset + (end - begin) // ALIGNMENT * ALIGNMENT].view(-1, ALIGNMENT)
            whole.index_copy_(0, self.numbers[first:last] - begin // ALIGNMENT, rows[first:last])
        for number in (*range(touched.start, min(first, touched.stop)), *range(max(first, last), touched.stop)):
            at = self._offsets[number] - offset
            of_room = slice(max(at, 0), min(at + ALIGNMENT, room.numel()))
            room[of_room].copy_(rows[number, of_room.start - at : of_room.stop - at])

    def _whole(self, begin: int, end: int) -> tuple[int, int]:
        """The first row that lies between ``begin`` and ``end``, and the first after."""
        return bisect_left(self._offsets, begin), bisect_right(self._offsets, end - ALIGNMENT)


class Rows(NamedTuple):
    """The rows of one version.

    Attributes:
        places: of the rows.
        rows: as :meth:`Places.put` wants them.
    """

    places: Places
    rows: torch.Tensor

    def fill(self, room: torch.Tensor, offset: int) -> None:
        """As :meth:`Places.put`."""
        self.places.put(self.rows, room, offset)
