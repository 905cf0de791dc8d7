"""Scatters rows of bytes, which lie together in memory, to the places that they have in an extent."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch

from ckpt_transport.spi import ALIGNMENT, Launch
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
        own = self._within(offset, offset + bucket.numel())
        rows, numbers = rows[own.start : own.stop], self._numbers[own.start : own.stop]
        to = (numbers * ALIGNMENT - offset)[:, None] + torch.arange(ALIGNMENT, device=numbers.device)
        inside = (to >= 0) & (to < bucket.numel())
        bucket[to[inside]] = rows[inside]

    def _within(self, begin: int, end: int) -> range:
        """Return the rows that have bytes between ``begin`` and ``end``."""
        return range(bisect_right(self._offsets, begin - ALIGNMENT), bisect_left(self._offsets, end))


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
