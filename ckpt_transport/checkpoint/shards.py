"""A shard is a part of a tensor that a source gives, as a sharded trainer has it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ckpt_transport.checkpoint.given import check_plain, what
from ckpt_transport.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import TypeIs


@dataclass(frozen=True, slots=True)
class TensorShard:
    """A shard is a box of a tensor: what one rank has of it.

    Attributes:
        tensor: the elements of the box, in its shape.
        shape: of the whole tensor, in elements.
        offsets: where the box starts in each dimension.
        replicated: other ranks have the same box, with equal elements; one of them sends it.
    """

    tensor: torch.Tensor
    shape: Sequence[int]
    offsets: Sequence[int]
    replicated: bool = False

    @staticmethod
    def of_run(run: torch.Tensor, shape: Sequence[int], start: int, replicated: bool = False) -> list[TensorShard]:
        """The boxes of a run of elements of a flattened tensor, as ZeRO keeps them.

        Args:
            run: the elements, of one dimension. What reaches beyond the tensor is padding, and left out.
            shape: of the whole tensor.
            start: number of the first element.
            replicated: as of a shard.

        Raises:
            CheckpointError: the run is no tensor.
        """
        if not isinstance(run, torch.Tensor):
            raise CheckpointError(f"the run of a tensor of shape {list(shape)} is {what(run)}")
        run = run[: max(math.prod(shape) - start, 0)]
        return [
            TensorShard(box, tuple(shape), offsets, replicated) for box, offsets in _boxes(run, tuple(shape), start)
        ]


Tensors = Mapping[str, "torch.Tensor | TensorShard | Sequence[TensorShard]"]
"""What one source gives of a version, by name."""
TensorPairs = Iterable[tuple[str, "torch.Tensor | TensorShard | Sequence[TensorShard]"]]
"""The same, one after the other, for who gathers them and keeps none."""


def comes_in_pairs(tensors: object) -> TypeIs[TensorPairs]:
    """Whether these are pairs, of which each may be looked at once, and not a mapping that has them all."""
    return isinstance(tensors, Iterable) and not isinstance(tensors, Mapping | torch.Tensor | torch.nn.Module)


def parts_of(value: object) -> Sequence[torch.Tensor]:
    """What a source has of one tensor of :data:`Tensors`; nothing of what is none."""
    if isinstance(value, torch.Tensor):
        return [value]
    shards = value if isinstance(value, Sequence) else [value]
    tensors = [shard.tensor for shard in shards if isinstance(shard, TensorShard)]
    return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]


def _boxes(run: torch.Tensor, shape: tuple[int, ...], start: int) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
    """A run of a flattened tensor is what is left of a row, rows, and what has begun of another; rows are cut alike."""
    if not shape:
        yield from ((element, ()) for element in run)
        return
    size = math.prod(shape[1:])
    while run.numel():
        row, reached = divmod(start, size)
        rows = 0 if reached else run.numel() // size
        count = rows * size if rows else min(size - reached, run.numel())
        if rows:
            yield run[:count].view(rows, *shape[1:]), (row,) + (0,) * (len(shape) - 1)
        else:
            yield from ((box.unsqueeze(0), (row, *offsets)) for box, offsets in _boxes(run[:count], shape[1:], reached))
        run, start = run[count:], start + count


def check_shard(name: str, shard: TensorShard) -> None:
    """
    Raises:
        CheckpointError: what it holds is no plain tensor; names it, and says what to give.
    """
    if not isinstance(shard.tensor, torch.Tensor):
        raise CheckpointError(f"a shard of '{name}' is {what(shard.tensor)}")
    check_plain(name, shard.tensor)
