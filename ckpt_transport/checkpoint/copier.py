"""A copier brings tensors that are in memory into a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from ckpt_transport import dtypes
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Buffer
from ckpt_transport.planning.values.manifest import TensorSpec

if TYPE_CHECKING:
    from ckpt_transport.checkpoint.shards import GivenTensor

_RESERVE_NBYTES = 4 << 20


def describe(tensors: Mapping[str, torch.Tensor]) -> list[TensorSpec]:
    """Describe these tensors as a checkpoint would declare them, in the order of the mapping.

    Args:
        tensors: as :func:`~ckpt_transport.checkpoint.given.given_tensors` returns them.

    Raises:
        CheckpointError: there are none, or one has a dtype that safetensors cannot hold.
    """
    if not tensors:
        raise CheckpointError("a version needs at least one tensor, and the mapping of tensors is empty")
    return [spec_of(name, tensor.dtype, dtypes.shape_of(tensor)) for name, tensor in tensors.items()]


def copy(
    tensors: Iterable[GivenTensor],
    offsets: Iterable[int],
    pool: Buffer,
    executor: ThreadPoolExecutor,
    report: Callable[[int], None],
) -> None:
    """Copy what is given of each tensor to its offset in ``pool``.

    The copies run in the caller's thread, and so on its current CUDA stream, after whatever still writes the tensors;
    on the CPU torch spreads them over its own threads. They are complete when this returns.

    Args:
        tensors: of any shape, stride and device, of a dtype in :data:`ckpt_transport.dtypes.TORCH`.
        offsets: one for each, in the same order, in bytes.
        pool: where to.
        executor: reserves the pages of a shared pool.
        report: called with the bytes of each tensor, when it is there.

    Raises:
        CheckpointError: torch cannot copy a tensor.
        SharedMemoryError: ``/dev/shm`` is full.
    """
    _reserve(pool, executor)
    for given, offset in zip(tensors, offsets, strict=True):
        raw = pool.tensor[offset : offset + given.nbytes]
        try:
            dtypes.as_tensor(raw, given.spec.dtype, dtypes.shape_of(given.tensor)).copy_(given.tensor.detach())
        except RuntimeError as error:
            raise CheckpointError(f"tensor '{given.spec.name}' cannot be copied: {error}") from error
        report(given.nbytes)


def spec_of(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
    """Describe one tensor as a checkpoint would declare it.

    Raises:
        CheckpointError: safetensors cannot hold it; names it.
    """
    try:
        spec = TensorSpec(name, dtypes.name_of(dtype), shape)
        dtypes.nbytes(spec.dtype, spec.shape)
    except CheckpointError as error:
        raise CheckpointError(f"tensor '{name}': {error}") from error
    return spec


def _reserve(pool: Buffer, executor: ThreadPoolExecutor) -> None:
    segment = pool.segment
    if segment is None:
        return
    starts = range(0, pool.nbytes, _RESERVE_NBYTES)
    reserved = executor.map(lambda start: segment.reserve(start, min(_RESERVE_NBYTES, pool.nbytes - start)), starts)
    for _ in reserved:
        pass
