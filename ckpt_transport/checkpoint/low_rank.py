"""What an adapter adds to a weight is the product of two small matrices: it is added on the way, and rounded once.

Sums are made of blocks of rows that start at the same rows whatever is asked for, so that an element has the same bytes
in every bucket that holds it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

BLOCK_ELEMENTS = 1 << 20
"""So many elements of a sum exist at once, in FP32."""


class LowRank(NamedTuple):
    """Is to be added to a tensor: ``scaling * left @ right``.

    Attributes:
        left: of the tensor's shape, with the rank in place of its last dimension.
        right: of two dimensions: the rank, and the tensor's last one.
        scaling: a factor.
    """

    left: torch.Tensor
    right: torch.Tensor
    scaling: float

    def narrow(self, dim: int, start: int, length: int) -> LowRank:
        """What is added to these indices of one dimension of the tensor."""
        if dim == self.left.dim() - 1:
            return self._replace(right=self.right.narrow(1, start, length))
        return self._replace(left=self.left.narrow(dim, start, length))

    def unsqueeze(self) -> LowRank:
        """What is added to the tensor with a dimension of one index in front."""
        return self._replace(left=self.left.unsqueeze(0))

    def first(self) -> LowRank:
        """What is added to the first index of the tensor's first dimension, which is not its last."""
        return self._replace(left=self.left[0])


class Sum(NamedTuple):
    """A tensor and what is to be added to it.

    Attributes:
        base: the tensor.
        added: is added to it.
    """

    base: torch.Tensor
    added: Sequence[LowRank]

    def blocks(self, first: int, last: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The elements from number ``first`` on and before ``last``: where each block starts, and the block.

        Blocks are flat, and FP32, or FP64 where the tensor is.
        """
        if first >= last:
            return
        columns = self.base.shape[-1]
        rows = self.base.detach().reshape(-1, columns)
        lefts = [each.left.reshape(-1, each.left.shape[-1]) for each in self.added]
        step = max(1, BLOCK_ELEMENTS // columns)
        for low in range(first // columns // step * step, -(-last // columns), step):
            block = rows[low : low + step].to(torch.promote_types(rows.dtype, torch.float32))
            for left, (_, right, scaling) in zip(lefts, self.added, strict=True):
                block = torch.addmm(block, left[low : low + step], right, alpha=scaling)
            start = low * columns
            begin, end = max(first, start), min(last, start + block.numel())
            yield begin, block.reshape(-1)[begin - start : end - start]

    def write(self, target: torch.Tensor) -> None:
        """Put the whole sum into a contiguous tensor of its shape, of any dtype."""
        flat = target.view(-1)
        for start, block in self.blocks(0, flat.numel()):
            flat[start : start + block.numel()].copy_(block)


class Sums:
    """Some tensors of an extent are sums; a :class:`~ckpt_transport.checkpoint.computed.Computing`.

    Args:
        sums: the tensors.
        dtypes: what each becomes.
        offsets: where each starts in the extent, ascending, in bytes.
    """

    repeatable = False
    """How a product is rounded may depend on how many rows are multiplied at once."""

    def __init__(self, sums: Sequence[Sum], dtypes: Sequence[torch.dtype], offsets: Sequence[int]) -> None:
        self._sums, self._dtypes, self._offsets = sums, dtypes, offsets

    def fill(self, bucket: torch.Tensor, offset: int) -> None:
        end = offset + bucket.numel()
        for number in range(max(bisect_right(self._offsets, offset) - 1, 0), len(self._sums)):
            each, dtype, start = self._sums[number], self._dtypes[number], self._offsets[number]
            if start >= end:
                return
            size = dtype.itemsize
            first, last = max(offset - start, 0) // size, min((end - start) // size, each.base.numel())
            for begin, block in each.blocks(first, last):
                low = start + begin * size - offset
                bucket[low : low + block.numel() * size].view(dtype).copy_(block, non_blocking=bucket.is_cuda)
