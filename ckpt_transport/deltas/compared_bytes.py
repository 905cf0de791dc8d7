"""Bytes that are compared with those of a base lie in a copy of a version, or are made where they are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ckpt_transport.memory import Backing, Buffer

Part = tuple[int, int]
"""Where bytes start in an extent, and how many there are."""


class MadeBytes:
    """Makes the bytes of an extent on one device; between tensors they are 0.

    Args:
        backing: behind the extent. It makes the same bytes each time, however many at once.
        device: where they are compared.
    """

    def __init__(self, backing: Backing, device: torch.device) -> None:
        self._backing, self.device = backing, device

    def parts(self, wanted: Sequence[Part]) -> list[torch.Tensor]:
        """Parts that ascend and lie close together, made at once: uint8, on a GPU in the order of its current stream.

        It takes memory for all from the first byte to the last.
        """
        start, (last, nbytes) = wanted[0][0], wanted[-1]
        made = torch.zeros(last + nbytes - start, dtype=torch.uint8, device=self.device)
        self._backing.fill(made, start)
        return [made[offset - start : offset - start + nbytes] for offset, nbytes in wanted]


class CopiedBytes:
    """The same of an extent that is one run of memory.

    Args:
        buffer: that memory.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._raw, self.device = buffer.tensor, buffer.tensor.device

    def parts(self, wanted: Sequence[Part]) -> list[torch.Tensor]:
        """Views of parts."""
        return [self._raw[offset : offset + nbytes] for offset, nbytes in wanted]


ComparedBytes = MadeBytes | CopiedBytes
