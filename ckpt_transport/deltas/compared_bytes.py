"""Bytes that are compared with those of a base lie in a copy of a version, or are made where they are compared."""

from __future__ import annotations

import torch

from ckpt_transport.memory import Backing, Buffer


class MadeBytes:
    """Makes the bytes of an extent on one device; between tensors they are 0.

    Args:
        backing: behind the extent. It makes the same bytes each time, however many at once.
        device: where they are compared.
    """

    def __init__(self, backing: Backing, device: torch.device) -> None:
        self._backing, self.device = backing, device

    def part(self, offset: int, nbytes: int) -> torch.Tensor:
        """So many bytes from ``offset`` on: uint8, on a GPU in the order of its current stream."""
        made = torch.zeros(nbytes, dtype=torch.uint8, device=self.device)
        self._backing.fill(made, offset)
        return made


class CopiedBytes:
    """The same of an extent that is one run of memory.

    Args:
        buffer: that memory.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._raw, self.device = buffer.tensor, buffer.tensor.device

    def part(self, offset: int, nbytes: int) -> torch.Tensor:
        return self._raw[offset : offset + nbytes]


ComparedBytes = MadeBytes | CopiedBytes
