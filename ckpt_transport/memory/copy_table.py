"""A copy table has a GPU do many strided copies in one launch.

It is compiled once, from :class:`StridedBytes`, and says nothing of where either side lies: addresses come with each
launch. So it serves every slot, every version of the same shapes, and a module whose tensors were replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import numpy as np
import torch

from ckpt_transport.memory.launch import Launch, has_kernels
from ckpt_transport.memory.strided_bytes import WIDEST, StridedBytes, tiles
from ckpt_transport.memory.table import put, record_use

WARPS = 8
BLOCK = 2048
"""Words that a program moves at a time."""


def has_copy_tables(device: torch.device) -> bool:
    """Whether copy tables work on ``device``: it is a GPU, and Triton is installed."""
    return device.type == "cuda" and has_kernels()


class Addresses:
    """Where the memories of one side of a copy table lie.

    A GPU reads its own memory, that of another GPU where it is mapped, and host memory that is page-locked.

    Args:
        device: which works on them.
        values: the address of each. One is passed with the launch; several are put on the device now.
    """

    def __init__(self, device: torch.device, values: Sequence[int]) -> None:
        self.values = tuple(values)
        array = np.array(self.values, np.int64)
        self.phases = (array % WIDEST).astype(np.uint8).tobytes()
        """Each modulo the widest word."""
        several = len(self.values) > 1
        self.base, self.table = (0, put(array, device)) if several else (sum(self.values), _zero(device))


class CopyTable:
    """Many strided copies.

    Args:
        device: the GPU that does them.
        copies: from and to which memories, by their numbers in what is passed to :meth:`copy`.
    """

    def __init__(self, device: torch.device, copies: StridedBytes) -> None:
        self._device, self._copies = device, copies
        self._tiles: dict[tuple[bytes, ...], torch.Tensor] = {}

    def foresee(self, sources: int, targets: Addresses) -> None:
        """Cut the copies now as so many sources need it that begin at whole words, as most memory does."""
        self._tiles_for(bytes(sources), targets.phases)

    def prepare(self, sources: Addresses, targets: Addresses) -> None:
        """Do what :meth:`copy` or :meth:`exchange` would do the first time besides launching."""
        self._tiles_for(sources.phases, targets.phases)

    def copy(self, sources: Addresses, targets: Addresses) -> None:
        """Enqueue all copies, on the current stream of the device. No target may overlap another, nor a source."""
        self._launch(False, sources, targets)

    def exchange(self, sources: Addresses, targets: Addresses) -> None:
        """As :meth:`copy`, but each byte of a target goes to where the byte comes from that it is replaced by."""
        self._launch(True, sources, targets)

    def _launch(self, exchange: bool, sources: Addresses, targets: Addresses) -> None:
        cut = self._tiles_for(sources.phases, targets.phases)
        if not len(cut):
            return
        with _current(self._device):
            record_use(cut, sources.table, targets.table)
            launch = _launch_of(exchange, self._device)
            launch(len(cut), cut, sources.base, sources.table, targets.base, targets.table)

    def _tiles_for(self, *phases: bytes) -> torch.Tensor:
        known = self._tiles.get(phases)
        if known is None:
            read, write = (np.frombuffer(each, np.uint8).astype(np.int64) for each in phases)
            known = self._tiles[phases] = put(tiles(self._copies, read, write), self._device)
        return known


@cache
def _launch_of(exchange: bool, device: torch.device) -> Launch:
    """The kernel as it is compiled for one device. Only where Triton is installed it can be imported."""
    from ckpt_transport.memory.copy_kernel import move_tiles

    return Launch(move_tiles, WARPS, EXCHANGE=exchange, BLOCK=BLOCK)


def _current(device: torch.device) -> AbstractContextManager[object]:
    """What makes a GPU the current one; a device of the interpreter's is none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _zero(device: torch.device) -> torch.Tensor:
    return put(np.zeros(1, np.int64), device)
