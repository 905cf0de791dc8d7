"""The bytes of pairs of tensors are exchanged, all of them or none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ckpt_transport.memory.copy_table import Addresses, CopyTable, has_copy_tables
from ckpt_transport.memory.cores import usable_cores
from ckpt_transport.memory.strided_bytes import StridedBytes
from ckpt_transport.memory.uninterrupted import uninterrupted

CHUNK_BYTES = 256 << 10
"""On the host: three copies of so many bytes stay in a core's cache."""
SCRATCH_BYTES = 64 << 20
"""On a device without copy tables."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""Two tensors of uint8, one-dimensional and contiguous, of equal length, that share no memory."""
CPU = torch.device("cpu")


class ByteExchange:
    """Exchanges the bytes of the same pairs as often as asked; what can be done once is done when it is made.

    Args:
        pairs: both of a pair are on one device, or one is host memory, page-locked.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        by_device: defaultdict[torch.device, list[Pair]] = defaultdict(list)
        for pair in pairs:
            by_device[next((each.device for each in pair if each.is_cuda), CPU)].append(pair)
        on_host = by_device.pop(CPU, [])
        self._chunks = [chunk for pair in on_host for chunk in _chunks(pair, CHUNK_BYTES)]
        self._enqueue = [
            exchange_by_table(device, own) if has_copy_tables(device) else exchange_by_scratch(device, own)
            for device, own in by_device.items()
        ]
        self._devices = tuple(by_device)

    def run(self) -> None:
        """Exchange. What is enqueued on the devices before is done first, and all is done when this returns.

        An interrupt waits until then.
        """
        uninterrupted(self._run)

    def _run(self) -> None:
        cores = min(usable_cores(), len(self._chunks))
        self._synchronize()
        with ThreadPoolExecutor(max(cores, 1), "ckpt-transport-exchange") as workers:
            running = [workers.submit(_exchange_on_host, self._chunks[core::cores]) for core in range(cores)]
            for enqueue in self._enqueue:
                enqueue()
            for each in running:
                each.result()
        self._synchronize()

    def _synchronize(self) -> None:
        for device in self._devices:
            torch.cuda.synchronize(device)


def _chunks(pair: Pair, nbytes: int) -> list[Pair]:
    return list(zip(torch.split(pair[0], nbytes), torch.split(pair[1], nbytes), strict=True))


def _exchange_on_host(chunks: Sequence[Pair]) -> None:
    scratch = np.empty(CHUNK_BYTES, np.uint8)
    for one, other in chunks:
        first, second, kept = one.numpy(), other.numpy(), scratch[: one.numel()]
        np.copyto(kept, first)
        np.copyto(first, second)
        np.copyto(second, kept)


def exchange_by_table(device: torch.device, pairs: Sequence[Pair]) -> Callable[[], None]:
    """What enqueues the exchange of these pairs on a GPU, in one launch."""
    numbers = np.arange(len(pairs), dtype=np.int64)
    start = np.zeros_like(numbers)
    run = np.array([one.numel() for one, _ in pairs], np.int64)
    table = CopyTable(device, StridedBytes.contiguous(numbers, numbers, start, start, run))
    ones, others = (Addresses(device, [each.data_ptr() for each in side]) for side in zip(*pairs, strict=True))
    table.prepare(ones, others)
    return lambda: table.exchange(ones, others)


def exchange_by_scratch(device: torch.device, pairs: Sequence[Pair]) -> Callable[[], None]:
    """As :func:`exchange_by_table`, through scratch memory of the GPU."""

    def enqueue() -> None:
        scratch = torch.empty(SCRATCH_BYTES, dtype=torch.uint8, device=device)
        for pair in pairs:
            for one, other in _chunks(pair, SCRATCH_BYTES):
                kept = scratch[: one.numel()]
                kept.copy_(one, non_blocking=True)
                one.copy_(other, non_blocking=True)
                other.copy_(kept, non_blocking=True)

    return enqueue
