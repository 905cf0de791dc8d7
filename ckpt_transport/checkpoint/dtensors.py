"""What a rank has of a DTensor.

DTensors are cut as torch cuts them (``torch.distributed.tensor.placement_types``): ``Shard`` is ``torch.chunk``, and
``_StridedShard``, which FSDP2 makes of what tensor parallelism has cut already, is a chunk of each of several chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from ckpt_transport.checkpoint.given import OWN_KINDS, check_plain
from ckpt_transport.checkpoint.index_runs import Run, chunk
from ckpt_transport.errors import CheckpointError

_cut = attrgetter("shape", "placements", "device_mesh")


def is_dtensor(value: object) -> bool:
    """Whether it is a tensor of which this rank has a part."""
    return isinstance(value, torch.Tensor) and hasattr(value, "full_tensor") and hasattr(value, "placements")


class LocalPart(NamedTuple):
    """What a rank has of a tensor: the elements, the runs of each dimension, and whether other ranks have it, too."""

    tensor: torch.Tensor
    runs: Sequence[Sequence[Run]]
    replicated: bool


def local_part(name: str, value: Any) -> LocalPart | None:
    """What this rank has of a DTensor; None where it is not in the mesh.

    Raises:
        CheckpointError: the ranks have summands.
    """
    coordinate, shape = value.device_mesh.get_coordinate(), tuple(value.shape)
    if coordinate is None:
        return None
    if any(placement.is_partial() for placement in value.placements):
        raise CheckpointError(
            f"tensor '{name}' is a DTensor whose ranks have summands of it ({value.placements}); give "
            "redistribute(placements=[Replicate()]) of it"
        )
    (local,) = _here([value])
    check_plain(name, local)
    runs = runs_of(shape, value.device_mesh.shape, coordinate, value.placements)
    copies = any(
        placement.is_replicate() and size > 1
        for placement, size in zip(value.placements, value.device_mesh.shape, strict=True)
    )
    return LocalPart(local, runs, copies)


def _here(values: Iterable[Any]) -> list[torch.Tensor]:
    """What this rank has of each: a tensor itself, and of a DTensor its local tensor."""
    with torch.no_grad():  # without a node of autograd it is much shorter; to switch these off takes as long as a call
        return [value if type(value) in OWN_KINDS else value.to_local().detach() for value in values]


class PlainTensors(NamedTuple):
    """What this rank has of tensors, all of it plain.

    Attributes:
        values: the tensors, and of DTensors what is here.
        cuts: shape, placements and mesh of each DTensor, and None of others; empty where there are no DTensors.
    """

    values: list[torch.Tensor]
    cuts: Sequence[object] = ()


def plain_tensors(values: list[Any]) -> PlainTensors | None:
    """What this rank has of all these; None where something else is among them."""
    if not (others := set(map(type, values)) - OWN_KINDS):
        return PlainTensors(values)
    if not all(issubclass(kind, torch.Tensor) and hasattr(kind, "full_tensor") for kind in others):
        return None
    here = _here(values)
    if not OWN_KINDS.issuperset(map(type, here)):
        return None
    return PlainTensors(here, [None if type(value) in OWN_KINDS else _cut(value) for value in values])


def runs_of(
    shape: Sequence[int], mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]
) -> list[list[Run]]:
    """The runs of each dimension that one rank has of a DTensor.

    Args:
        shape: of the tensor.
        mesh: sizes of the mesh's dimensions.
        coordinate: of the rank in the mesh.
        placements: of the tensor, one for each dimension of the mesh.
    """
    runs: list[list[Run]] = [[(0, size)] for size in shape]
    for placement, ranks, own in zip(placements, mesh, coordinate, strict=True):
        dim = getattr(placement, "dim", None)
        if dim is None:
            continue
        pieces = getattr(placement, "split_factor", 1)
        runs[dim] = [run for piece in range(pieces) for run in chunk(chunk(runs[dim], pieces, piece), ranks, own)]
    return runs
