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

    Their memory is kept, and they are not: one that gets other memory has its bytes where they were.

    Args:
        tensors: contiguous, on any devices.
        addresses, sizes: of each, in bytes.

    Attributes:
        begins: where the memory began in which each lies.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], addresses: Sequence[int], sizes: Sequence[int]) -> None:
        self._addresses, self._sizes = addresses, sizes
        self._memories = list(map(torch.Tensor.untyped_storage, tensors))
        self.begins = self.begins_now()
        self._made: dict[int, torch.Tensor] = {}

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> ByteViews:
        """Those of these tensors."""
        return cls(tensors, list(map(torch.Tensor.data_ptr, tensors)), [tensor.nbytes for tensor in tensors])

    def begins_now(self) -> list[int]:
        """Where the memory begins in which each lies: elsewhere than before where its owner has freed it."""
        return list(map(torch.UntypedStorage.data_ptr, self._memories))

    def __len__(self) -> int:
        return len(self._memories)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        if isinstance(index, slice):
            return self._some(index)
        made = self._made.get(index)
        if made is None:
            made = self._made[index] = self._view(index)
        return made

    def _some(self, which: slice) -> ByteViews:
        some = ByteViews((), self._addresses[which], self._sizes[which])
        some._memories, some.begins = self._memories[which], self.begins[which]
        return some

    def _view(self, number: int) -> torch.Tensor:
        memory, nbytes = self._memories[number], self._sizes[number]
        view = torch.empty(0, dtype=torch.uint8, device=memory.device)
        return view.set_(memory, self._addresses[number] - self.begins[number] if nbytes else 0, (nbytes,), (1,))
