"""A copier brings tensors that are in memory into a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from ckpt_transport import dtypes
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Buffer
from ckpt_transport.planning.values.manifest import PlacedTensor, TensorSpec

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
    return [_describe(name, tensor) for name, tensor in tensors.items()]


def copy(
    tensors: Iterable[torch.Tensor],
    placed: Iterable[PlacedTensor],
    pool: Buffer,
    executor: ThreadPoolExecutor,
    report: Callable[[int], None],
) -> None:
    """Copy ``tensors`` to where they are ``placed`` in ``pool``.

    The copies run in the caller's thread, and so on its current CUDA stream, after whatever still writes the tensors;
    on the CPU torch spreads them over its own threads. They are complete when this returns.

    Args:
        tensors: any shape, stride and device, of a dtype in :data:`ckpt_transport.dtypes.TORCH`.
        placed: one for each tensor, in the same order.
        pool: where to.
        executor: reserves the pages of a shared pool.
        report: called with the bytes of each tensor, when it is there.

    Raises:
        CheckpointError: torch cannot copy a tensor.
        SharedMemoryError: ``/dev/shm`` is full.
    """
    _reserve(pool, executor)
    for tensor, place in zip(tensors, placed, strict=True):
        raw = pool.tensor[place.offset : place.offset + place.nbytes]
        try:
            dtypes.as_tensor(raw, place.spec.dtype, place.spec.shape).copy_(tensor.detach())
        except RuntimeError as error:
            raise CheckpointError(f"tensor '{place.spec.name}' cannot be copied: {error}") from error
        report(place.nbytes)


def _describe(name: str, tensor: torch.Tensor) -> TensorSpec:
    try:
        spec = TensorSpec(name, dtypes.name_of(tensor.dtype), dtypes.shape_of(tensor))
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
