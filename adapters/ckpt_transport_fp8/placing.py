"""Putting rows in their places on a GPU, in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ckpt_transport.spi import ALIGNMENT
from ckpt_transport_fp8 import kernels
from ckpt_transport_fp8.launch import Launch
from ckpt_transport_fp8.rows import Places

TOGETHER = 16
"""Rows that one program puts."""


class PlacesOnGpu(Places):
    """As :class:`~ckpt_transport_fp8.rows.Places`, by a Triton kernel."""

    def __init__(self, offsets: Sequence[int], device: torch.device) -> None:
        super().__init__(offsets, device)
        self._place = Launch(kernels.place, warps=4, ROW=ALIGNMENT, TOGETHER=TOGETHER)

    def put(self, rows: torch.Tensor, room: torch.Tensor, offset: int) -> None:
        end = offset + room.numel()
        if own := self.within(offset, end):
            self._place(-(-len(own) // TOGETHER), room, offset, end, own.start, own.stop, self.numbers, rows)
