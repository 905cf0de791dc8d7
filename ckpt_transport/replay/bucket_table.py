"""On a GPU all that is copied out of one bucket is copied in one launch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import torch

from ckpt_transport import dtypes
from ckpt_transport.memory import Addresses, CopyTable, ElementCopy, Runs, StridedBytes, addresses_of
from ckpt_transport.replay.strided_copy import StridedCopy


class BucketTable:
    """The strided copies of one bucket as a copy table, which stays when bucket or targets come to lie elsewhere.

    Args:
        device: the GPU, on which targets are.
        copies: of the bucket.
        starts: where its runs start in the bucket, in bytes; each copy reads from one of them.
        tensors: the targets, by number.

    Attributes:
        rest: numbers of copies that torch must do: they convert, or their target is elsewhere.
    """

    def __init__(
        self,
        device: torch.device,
        copies: Sequence[StridedCopy],
        starts: Sequence[int],
        tensors: Mapping[int, torch.Tensor],
    ) -> None:
        self._device, self._starts = device, starts
        tabled = [_is_tabled(copy, tensors[copy.target].device, device) for copy in copies]
        self.rest = [number for number, is_tabled in enumerate(tabled) if not is_tabled]
        kept = [copy for copy, is_tabled in zip(copies, tabled, strict=True) if is_tabled]
        self._targets = sorted({copy.target for copy in kept})
        numbers = {target: number for number, target in enumerate(self._targets)}
        self._table = CopyTable(device, StridedBytes.of([self._element_copy(copy, numbers) for copy in kept]))
        self._read = Addresses(device, ())
        self._written = Addresses(device, [tensors[target].data_ptr() for target in self._targets])

    def finds(self, tensors: Mapping[int, torch.Tensor]) -> bool:
        """Look up where targets lie; return whether they are all on the device still."""
        targets = [tensors[target] for target in self._targets]
        found = tuple(map(torch.Tensor.data_ptr, targets))
        if found != self._written.values:
            if any(tensor.device != self._device for tensor in targets):
                return False
            self._written = Addresses(self._device, found)
        return True

    def copy(self, runs: Runs) -> None:
        """Enqueue all copies but the rest, out of memory that the device can read."""
        found = addresses_of(runs)
        if found != self._read.values:
            self._read = Addresses(self._device, found)
        self._table.copy(self._read, self._written)

    def _element_copy(self, copy: StridedCopy, numbers: Mapping[int, int]) -> ElementCopy:
        run = bisect_right(self._starts, copy.read) - 1
        return ElementCopy(
            run,
            numbers[copy.target],
            copy.read - self._starts[run],
            copy.write,
            dtypes.TORCH[copy.write_dtype].itemsize,
            copy.shape,
            copy.read_strides,
            copy.write_strides,
        )


def _is_tabled(copy: StridedCopy, at: torch.device, device: torch.device) -> bool:
    return at == device and copy.read_dtype == copy.write_dtype
