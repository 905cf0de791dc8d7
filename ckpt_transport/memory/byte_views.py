"""The bytes of tensors are seen as views that are made when somebody looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch


def byte_view(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, without a copy: uint8, one-dimensional. What lies there is not interpreted.

    A tensor of one element is contiguous whatever its strides are, and torch refuses to look at its bytes through some.
    """
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


class ByteViews(Sequence[torch.Tensor]):
    """The bytes of each of some contiguous tensors: many tensors are lent, and most are never looked at.

    Args:
        tensors: contiguous, on any devices.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        self._made: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._tensors)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        if isinstance(index, slice):
            return ByteViews(self._tensors[index])
        made = self._made.get(index)
        if made is None:
            made = self._made[index] = byte_view(self._tensors[index])
        return made
