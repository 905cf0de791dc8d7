"""Makes tensors of a checkpoint's types and shapes that have no bytes of their own."""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Sequence

import torch

from ckpt_transport import dtypes
from ckpt_transport.planning import TensorSpec
from ckpt_transport.planning.values.alignment import align_up

MAP_NORESERVE = 0x4000
"""Linux: pages nobody touches take no memory, whatever the size. Not in Python's mmap module."""


class FakeTensors:
    """One host tensor per spec, each with a storage of its own, in memory that reads as zeros and is never written.

    Attributes:
        tensors: in the order of the specs.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._starts, end = [], 0
        for spec in specs:
            self._starts.append(end)
            end = align_up(end + max(spec.nbytes, 1))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self._memory = mmap.mmap(-1, max(end, 1), flags=flags)
        self._base = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
        self._nbytes = end
        self.tensors = tuple(self._tensor(spec, start) for spec, start in zip(specs, self._starts, strict=True))

    def _tensor(self, spec: TensorSpec, start: int) -> torch.Tensor:
        if not spec.nbytes:
            raw = torch.empty(0, dtype=torch.uint8)
        else:
            raw = torch.frombuffer(self._memory, dtype=torch.uint8, count=spec.nbytes, offset=start)
        return dtypes.as_tensor(raw, spec.dtype, spec.shape)

    def at(self, address: int) -> tuple[int, int] | None:
        """The tensor whose memory is at that address, and how many bytes from its start; None for other memory."""
        offset = address - self._base
        if not 0 <= offset < self._nbytes:
            return None
        index = bisect.bisect_right(self._starts, offset) - 1
        return index, offset - self._starts[index]
