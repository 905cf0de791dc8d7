"""The bytes of pairs of tensors are exchanged, all of them or none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

from ckpt_transport.memory.copy_table import Addresses, CopyTable, has_copy_tables
from ckpt_transport.memory.cores import usable_cores
from ckpt_transport.memory.strided_bytes import StridedBytes
from ckpt_transport.memory.uninterrupted import uninterrupted

CHUNK_BYTES = 256 << 10
"""On the host: three copies of so many bytes stay in a core's cache."""
SCRATCH_BYTES = 64 << 20
"""On a device without copy tables, and between devices."""
KNOWN_TABLES = 4
"""One for each model that is served here."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""Two tensors of uint8, one-dimensional and contiguous, of equal length, that share no memory."""


def exchange(pairs: Sequence[Pair]) -> None:
    """Exchange the bytes of each pair. What is enqueued on devices before is done first; all is done when it returns.

    An interrupt waits until then.
    """
    on_host = [pair for pair in pairs if pair[0].is_cpu and pair[1].is_cpu]
    chunks = [chunk for pair in on_host for chunk in _chunks(pair, CHUNK_BYTES)]
    on_devices = [pair for pair in pairs if not (pair[0].is_cpu and pair[1].is_cpu)]
    uninterrupted(lambda: _exchange(chunks, on_devices))


def _exchange(chunks: Sequence[Pair], on_devices: Sequence[Pair]) -> None:
    cores = usable_cores()
    with ThreadPoolExecutor(cores, "ckpt-transport-exchange") as workers:
        running = [workers.submit(_exchange_on_host, chunks[core::cores]) for core in range(cores)]
        _exchange_on_devices(on_devices)
        for each in running:
            each.result()


def _chunks(pair: Pair, nbytes: int) -> list[Pair]:
    return list(zip(torch.split(pair[0], nbytes), torch.split(pair[1], nbytes), strict=True))


def _exchange_on_host(chunks: Sequence[Pair]) -> None:
    scratch = np.empty(CHUNK_BYTES, np.uint8)
    for one, other in chunks:
        first, second, kept = one.numpy(), other.numpy(), scratch[: one.numel()]
        np.copyto(kept, first)
        np.copyto(first, second)
        np.copyto(second, kept)


def _exchange_on_devices(pairs: Sequence[Pair]) -> None:
    devices = {tensor.device for pair in pairs for tensor in pair if tensor.is_cuda}
    for device in devices:
        torch.cuda.synchronize(device)
    tabled: defaultdict[torch.device, list[Pair]] = defaultdict(list)
    others: list[Pair] = []
    for pair in pairs:
        one, other = pair
        within = one.device == other.device and has_copy_tables(one.device)
        (tabled[one.device] if within else others).append(pair)
    for device, within_it in tabled.items():
        exchange_by_table(device, within_it)
    _exchange_by_scratch(others)
    for device in devices:
        torch.cuda.synchronize(device)


def exchange_by_table(device: torch.device, pairs: Sequence[Pair]) -> None:
    """Enqueue the exchange of pairs that both lie on this GPU, in one launch."""
    sides = (Addresses(device, [side.data_ptr() for side in each]) for each in zip(*pairs, strict=True))
    _table(device, tuple(one.numel() for one, _ in pairs)).exchange(*sides)


@lru_cache(KNOWN_TABLES)
def _table(device: torch.device, sizes: tuple[int, ...]) -> CopyTable:
    numbers, zero = np.arange(len(sizes)), np.zeros(len(sizes), np.int64)
    return CopyTable(device, StridedBytes.contiguous(numbers, numbers, zero, zero, np.array(sizes, np.int64)))


def _exchange_by_scratch(pairs: Sequence[Pair]) -> None:
    scratch: dict[torch.device, torch.Tensor] = {}
    for pair in pairs:
        device = next(tensor.device for tensor in pair if tensor.is_cuda)
        if device not in scratch:
            scratch[device] = torch.empty(SCRATCH_BYTES, dtype=torch.uint8, device=device)
        for one, other in _chunks(pair, SCRATCH_BYTES):
            kept = scratch[device][: one.numel()]
            kept.copy_(one, non_blocking=True)
            one.copy_(other, non_blocking=True)
            other.copy_(kept, non_blocking=True)
