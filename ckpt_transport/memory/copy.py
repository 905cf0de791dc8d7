"""Bytes are copied on the host, and to and from a device, without spinning threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

from ckpt_transport.memory.cores import usable_cores
from ckpt_transport.memory.divided_digest import Along
from ckpt_transport.memory.fence import fence, stream_for
from ckpt_transport.memory.host_copies import HostCopies, copy_batch
from ckpt_transport.memory.moves import move

CHUNK_BYTES = 8 << 20
TURNS = 4
"""Of each thread that copies, where there is much: so many that none is left alone with much at the end."""
ALONG_BYTES = 4 << 20
"""So few that what was read of them for a digest is in a cache when they are copied."""
Batch = TypeVar("Batch")


def copy_bytes(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy ``source`` over ``target``: uint8, one-dimensional, contiguous, of equal length. Complete when it returns.

    On the host as many threads as torch may use take chunks until none is left, so a thread that loses its core holds
    up one chunk. ``Tensor.copy_`` splits the bytes evenly, and its threads wait for each other by spinning: where
    several processes copy at once, the one that spins keeps away the one it waits for.
    """
    if not (target.is_cpu and source.is_cpu):
        _copy_on_device([target], [source])
        return
    if target.numel() <= CHUNK_BYTES:
        move(target.numpy(), source.numpy())
        return
    most = _taken_at_once(target.numel())
    _copy_on_host(deque(zip(torch.split(target, most), torch.split(source, most), strict=True)))


def copy_views(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each of ``sources`` over the target in its place, on the host, as :func:`copy_bytes` does one.

    They may be strided, and of any dtype that NumPy has; both of a pair have the same shape and dtype, and at least one
    dimension.
    """
    chunks: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
    most = _taken_at_once(sum(target.nbytes for target in targets))
    for target, source in zip(targets, sources, strict=True):
        rows = max(1, most * len(target) // max(1, target.nbytes)) if len(target) else 1
        chunks.extend(zip(torch.split(target, rows), torch.split(source, rows), strict=True))
    _copy_on_host(chunks)


def copy_views_along(
    targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], starts: Sequence[int], along: Along
) -> None:
    """As :func:`copy_views`, piece by piece, and each thread that copies computes a digest of what it is about to read.

    Args:
        targets, sources: as they are.
        starts: where each source starts in its bucket, in bytes.
        along: called before bytes of the bucket are read, with where they end in it.
    """
    pieces: list[tuple[torch.Tensor, torch.Tensor, int]] = []
    for target, source, start in zip(targets, sources, starts, strict=True):
        rows = max(1, ALONG_BYTES * len(target) // max(1, target.nbytes)) if len(target) else 1
        begin = source.data_ptr() - start
        for one, other in zip(torch.split(target, rows), torch.split(source, rows), strict=True):
            pieces.append((one, other, other.data_ptr() - begin + _span(other)))

    def copy(piece: tuple[torch.Tensor, torch.Tensor, int]) -> None:
        target, source, until = piece
        along(until)
        move(target.numpy(), source.numpy())

    by_threads(pieces, copy, torch.get_num_threads())


def _span(view: torch.Tensor) -> int:
    """Bytes from the first one of a view to the end of the last."""
    steps = ((size - 1) * stride for size, stride in zip(view.shape, view.stride(), strict=True))
    return (sum(steps) + 1) * view.itemsize if view.numel() else 0


def _copy_on_host(chunks: deque[tuple[torch.Tensor, torch.Tensor]]) -> None:
    helpers = min(torch.get_num_threads(), len(chunks)) - 1
    running = [_executor().submit(_copy_chunks, chunks) for _ in range(helpers)]
    _copy_chunks(chunks)
    for future in running:
        future.result()


def copy_each(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each of ``sources``, on any devices, over the target in its place; all targets are on one device.

    As :func:`copy_bytes` does one, but on a device in the order of the current stream.
    """
    if all(tensor.is_cpu for tensor in (*targets, *sources)):
        for target, source in zip(targets, sources, strict=True):
            copy_bytes(target, source)
    elif targets[0].is_cpu:
        _copy_on_device(targets, sources)
    elif len(targets) == 1:
        targets[0].copy_(sources[0], non_blocking=True)
    else:
        torch._foreach_copy_(list(targets), list(sources), non_blocking=True)


def gathered(sources: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The bytes of ``sources``, all on one device, one behind the other on the host: two calls however many there are.

    Args:
        sources: at least one, uint8, one-dimensional; few bytes in all.
        device: where they are. On a GPU a stream of its own is used, so that nothing else waits.
    """
    if device.type != "cuda":
        return torch.cat(list(sources)).cpu()
    with torch.cuda.stream(stream_for("copies", device)):
        return torch.cat(list(sources)).cpu()


def copy_runs(copies: HostCopies) -> None:
    """Copy runs of host memory, of which no two write the same byte, as :func:`copy_bytes` does one. Complete when it
    returns.
    """
    by_threads(copies.in_batches(_taken_at_once(copies.nbytes)), copy_batch, torch.get_num_threads())


def _taken_at_once(nbytes: int) -> int:
    """Bytes that a thread takes of so many: the more, the longer, since at each turn it asks for Python's lock."""
    return max(CHUNK_BYTES, nbytes // (TURNS * torch.get_num_threads()))


def by_threads(batches: Iterable[Batch], copy: Callable[[Batch], object], most: int) -> None:
    """Have several threads copy batches, at most ``most`` of them. Complete when it returns.

    Raises: as ``copy``, when no thread copies any more.
    """
    left = deque(batches)
    helpers = min(most, len(left)) - 1
    running = [_executor().submit(_copy_batches, left, copy) for _ in range(helpers)]
    try:
        _copy_batches(left, copy)
    finally:
        wait(running)
    for future in running:
        future.result()


def _copy_batches(batches: deque[Batch], copy: Callable[[Batch], object]) -> None:
    while True:
        try:
            batch = batches.popleft()
        except IndexError:
            return
        try:
            copy(batch)
        except BaseException:
            batches.clear()
            raise


def _copy_chunks(chunks: deque[tuple[torch.Tensor, torch.Tensor]]) -> None:
    while True:
        try:
            target, source = chunks.popleft()
        except IndexError:
            return
        move(target.numpy(), source.numpy())


def _copy_on_device(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy on a stream of its own, so that nothing else waits; complete when it returns."""
    device = next(tensor.device for tensor in (*targets, *sources) if tensor.is_cuda)
    with torch.cuda.stream(stream_for("copies", device)):
        torch._foreach_copy_(list(targets), list(sources), non_blocking=True)
        copied = fence(device)
    if copied is not None:
        copied.synchronize()


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, max(torch.get_num_threads(), usable_cores()) - 1), "copy")


os.register_at_fork(after_in_child=_executor.cache_clear)
