"""Small tensors that lie here and there in an extent, and together in memory."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch

from ckpt_transport.planning.bucketing import ALIGNMENT, align_up


class Places:
    """Where rows of 256 bytes lie in an extent, in whatever version.

    Args:
        offsets: ascending, multiples of 256.
        device: where the rows will be.
    """

    def __init__(self, offsets: Sequence[int], device: torch.device) -> None:
        self.offsets = offsets
        self.numbers = torch.tensor(offsets, dtype=torch.int64, device=device) // ALIGNMENT


class Rows:
    """The rows of one version: all that lie in a bucket are copied in one go.

    Args:
        places: of the rows.
        rows: uint8, shape ``(places, 256)``, contiguous. What of them is no tensor goes where no tensor is.
    """

    def __init__(self, places: Places, rows: torch.Tensor) -> None:
        self._places, self._rows = places, rows

    def fill(self, room: torch.Tensor, offset: int) -> None:
        """Put what lies at the bytes from ``offset`` on into ``room``, on the same device, as many as it holds."""
        offsets, end, begin = self._places.offsets, offset + room.numel(), align_up(offset)
        first, last = bisect_left(offsets, begin), bisect_right(offsets, end - ALIGNMENT)
        if first < last:
            whole = room[begin - offset : begin - offset + (end - begin) // ALIGNMENT * ALIGNMENT].view(-1, ALIGNMENT)
            numbers = self._places.numbers[first:last] - begin // ALIGNMENT
            whole.index_copy_(0, numbers, self._rows[first:last])
        before, after = bisect_right(offsets, offset - ALIGNMENT), bisect_left(offsets, end)
        for number in (*range(before, min(first, after)), *range(max(first, last), after)):
            self._fill_from(number, room, offset)

    def _fill_from(self, number: int, room: torch.Tensor, offset: int) -> None:
        """A row of which the room has only some bytes."""
        at = self._places.offsets[number] - offset
        first, last = max(at, 0), min(at + ALIGNMENT, room.numel())
        room[first:last].copy_(self._rows[number, first - at : last - at])
