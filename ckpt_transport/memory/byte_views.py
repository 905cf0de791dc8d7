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
        begins: where the memory of others began that had these addresses and sizes, mostly that of these; None for
            unknown.

    Attributes:
        begins: where the memory begins in which each lies; where it was told, right after :meth:`begins_now`.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        addresses: Sequence[int],
        sizes: Sequence[int],
        begins: Sequence[int] | None = None,
    ) -> None:
        self._addresses, self._sizes = addresses, sizes
        self._memories = list(map(torch.Tensor.untyped_storage, tensors))
        self._is_sure = begins is None
        self.begins = self._asked() if begins is None else list(begins)
        self._made: dict[int, torch.Tensor] = {}

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> ByteViews:
        """Those of these tensors."""
        return cls(tensors, list(map(torch.Tensor.data_ptr, tensors)), [tensor.nbytes for tensor in tensors])

    def begins_now(self) -> list[int]:
        """Where the memory begins in which each lies: elsewhere than before where its owner has freed it."""
        now = self._asked()
        if not self._is_sure and now != self.begins:
            for number, begin in enumerate(now):
                if self._lies_in(number, begin):
                    self.begins[number] = begin
        self._is_sure = True
        return now

    def _asked(self) -> list[int]:
        return list(map(torch.UntypedStorage.data_ptr, self._memories))

    def _lies_in(self, number: int, begin: int) -> bool:
        """Whether bytes lie where they did within their memory, which begins there now: it was not freed."""
        start = self._addresses[number] - begin
        return 0 <= start <= self._memories[number].nbytes() - self._sizes[number]

    def place(self, number: int) -> tuple[int, int]:
        """The address and the bytes of one, of which nobody makes a view."""
        return self._addresses[number], self._sizes[number]

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
        some = ByteViews((), self._addresses[which], self._sizes[which], self.begins[which])
        some._memories, some._is_sure = self._memories[which], self._is_sure
        return some

    def _view(self, number: int) -> torch.Tensor:
        memory, nbytes, begin = self._memories[number], self._sizes[number], self.begins[number]
        if not self._is_sure and self._lies_in(number, memory.data_ptr()):
            begin = memory.data_ptr()
        view = torch.empty(0, dtype=torch.uint8, device=memory.device)
        return view.set_(memory, self._addresses[number] - begin if nbytes else 0, (nbytes,), (1,))
