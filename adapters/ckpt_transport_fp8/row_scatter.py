"""Scatters rows of bytes, which lie together in memory, to the places that they have in an extent."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch

from ckpt_transport.spi import ALIGNMENT, Launch, align_up
from ckpt_transport_fp8 import backend

ROWS_TOGETHER = 16
"""Rows that one program of the Triton kernel writes."""


class RowScatter:
    """Puts rows of 256 bytes where they belong, in any version, by torch's operations.

    Args:
        offsets: of the rows in the extent, in bytes; ascending, multiples of 256.
        device: where the rows will be.
    """

    def __init__(self, offsets: Sequence[int], device: torch.device) -> None:
        self._offsets = offsets
        self._numbers = torch.tensor(offsets, dtype=torch.int64, device=device) // ALIGNMENT
        """The offsets, counted in rows."""

    def fill(self, rows: torch.Tensor, bucket: torch.Tensor, offset: int) -> None:
        """Write to ``bucket`` the bytes of rows that lie in it, on the device of both.

        Args:
            rows: all of a version, uint8, shape ``(rows, 256)``, contiguous.
            bucket: uint8.
            offset: of the bucket in the extent, in bytes.
        """
        end, begin = offset + bucket.numel(), align_up(offset)
        touched, (first, last) = self._within(offset, end), self._whole(begin, end)
        if first < last:
            whole = bucket[begin - offset : begin - offset + (end - begin) // ALIGNMENT * ALIGNMENT]
            whole.view(-1, ALIGNMENT).index_copy_(0, self._numbers[first:last] - begin // ALIGNMENT, rows[first:last])
        for number in (*range(touched.start, min(first, touched.stop)), *range(max(first, last), touched.stop)):
            at = self._offsets[number] - offset
            of_bucket = slice(max(at, 0), min(at + ALIGNMENT, bucket.numel()))
            bucket[of_bucket].copy_(rows[number, of_bucket.start - at : of_bucket.stop - at])

    def _within(self, begin: int, end: int) -> range:
        """Return the rows that have bytes between ``begin`` and ``end``."""
        return range(bisect_right(self._offsets, begin - ALIGNMENT), bisect_left(self._offsets, end))

    def _whole(self, begin: int, end: int) -> tuple[int, int]:
        """Return the first row that lies between ``begin`` and ``end``, and the first after these."""
        return bisect_left(self._offsets, begin), bisect_right(self._offsets, end - ALIGNMENT)


class TritonRowScatter(RowScatter):
    """Puts rows where they belong by one launch of a Triton kernel."""

    def __init__(self, offsets: Sequence[int], device: torch.device) -> None:
        from ckpt_transport_fp8.triton_kernels import scatter_rows

        super().__init__(offsets, device)
        self._scatter = Launch(scatter_rows, warps=4, ROW=ALIGNMENT, TOGETHER=ROWS_TOGETHER)

    def fill(self, rows: torch.Tensor, bucket: torch.Tensor, offset: int) -> None:
        end = offset + bucket.numel()
        if own := self._within(offset, end):
            programs = -(-len(own) // ROWS_TOGETHER)
            self._scatter(programs, bucket, offset, end, own.start, own.stop, self._numbers, rows)


def row_scatter_on(device: torch.device, offsets: Sequence[int]) -> RowScatter:
    """Return the scatter of rows that is fastest on ``device``."""
    return TritonRowScatter(offsets, device) if backend.has_triton(device) else RowScatter(offsets, device)
