"""What a source gives of a version: tensors, DTensors and shards become given tensors, with the bytes that each has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.copier import spec_of
from ckpt_transport.checkpoint.dtensors import LocalPart, is_dtensor, local_part
from ckpt_transport.checkpoint.given import OWN_KINDS, check_plain, given_tensors
from ckpt_transport.checkpoint.given_tensor import GivenTensor
from ckpt_transport.checkpoint.index_runs import strided_ranges
from ckpt_transport.checkpoint.shards import TensorShard, check_shard
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import StridedRange
from ckpt_transport.planning.values.manifest import TensorSpec


def given(tensors: object, *, replicated: bool) -> list[GivenTensor]:
    """What a source gives of a version, in the order of the mapping.

    Args:
        tensors: from names to tensors, DTensors, :class:`TensorShard` or sequences of these. Beside DTensors a plain
            tensor is taken for what all ranks have alike, as ``state_dict()`` of a sharded module has it.
        replicated: plain tensors are the same on every rank that gives them.

    Raises:
        CheckpointError: as :func:`~ckpt_transport.checkpoint.given.given_tensors`; or a part does not lie in its
            tensor, is of too many ranges of bytes, or is still to be summed up; names it, and says what to give.
    """
    if not isinstance(tensors, Mapping):
        given_tensors(tensors)
    assert isinstance(tensors, Mapping)
    parts = {
        name: value
        for name, value in tensors.items()
        if type(value) not in OWN_KINDS and isinstance(name, str) and _is_part(value)
    }
    plain = given_tensors({name: value for name, value in tensors.items() if name not in parts} if parts else tensors)
    alike = replicated or any(is_dtensor(value) for value in parts.values())
    found: list[GivenTensor] = []
    for name in tensors:
        if name in plain:
            found.append(_whole(name, plain[name], replicated=alike))
        elif name in parts:
            found += _parts(name, parts[name])
    return found


def _is_part(value: object) -> bool:
    boxes = isinstance(value, Sequence) and bool(value) and all(isinstance(box, TensorShard) for box in value)
    return boxes or isinstance(value, TensorShard) or is_dtensor(value)


def _whole(name: str, tensor: torch.Tensor, *, replicated: bool) -> GivenTensor:
    spec, ranges = _described(name, tensor.dtype, dtypes.shape_of(tensor))
    return GivenTensor(spec, tensor, ranges, replicated)


@lru_cache(maxsize=1 << 16)
def _described(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[TensorSpec, tuple[StridedRange, ...]]:
    """What a whole tensor declares, and the range of its bytes. Every step of a training run asks for the same."""
    spec = spec_of(name, dtype, shape)
    return spec, (StridedRange(0, spec.nbytes),)


def _parts(name: str, value: Any) -> Iterator[GivenTensor]:
    if is_dtensor(value):
        part = local_part(name, value)
        if part is not None:
            yield from _part(name, part, tuple(value.shape))
        return
    yield from parts_in_boxes(name, [value] if isinstance(value, TensorShard) else value)


def parts_in_boxes(name: str, shards: Sequence[TensorShard], dtype: str = "") -> list[GivenTensor]:
    """What a source gives of a tensor as boxes.

    Args:
        name: of the tensor.
        shards: the boxes.
        dtype: as which they are to be sent; by default their own.

    Raises:
        CheckpointError: one does not lie in its tensor, or is of too many ranges of bytes; names it.
    """
    found: list[GivenTensor] = []
    for shard in shards:
        check_shard(name, shard)
        sizes, shape, offsets = tuple(shard.tensor.shape), tuple(shard.shape), tuple(shard.offsets)
        inside = len(sizes) == len(shape) == len(offsets) and all(
            0 <= offset <= offset + size <= whole for offset, size, whole in zip(offsets, sizes, shape, strict=True)
        )
        if not inside:
            raise CheckpointError(
                f"a shard of '{name}' has the shape {list(sizes)} at {list(offsets)}, which does not lie in a tensor "
                f"of shape {list(shape)}"
            )
        runs = [[(offset, offset + size)] for offset, size in zip(offsets, sizes, strict=True)]
        found += _part(name, LocalPart(shard.tensor, runs, shard.replicated), shape, dtype)
    return found


def _part(name: str, part: LocalPart, shape: tuple[int, ...], dtype: str = "") -> Iterator[GivenTensor]:
    local, runs, replicated = part
    check_plain(name, local)
    spec = spec_of(name, dtypes.TORCH[dtype] if dtype else local.dtype, shape)
    if dtypes.BITS[spec.dtype] % 8:
        raise CheckpointError(
            f"tensor '{name}' is {spec.dtype}, of which no parts can be given; give full_tensor() of it"
        )
    sizes = [sum(end - start for start, end in of_dimension) for of_dimension in runs]
    if sizes != list(local.shape):
        raise CheckpointError(
            f"this rank has {list(local.shape)} of tensor {spec} and should have {sizes}; give full_tensor() of it"
        )
    if not local.numel() and spec.nbytes:
        return
    yield GivenTensor(spec, local, strided_ranges(spec, runs), replicated or not spec.nbytes)
