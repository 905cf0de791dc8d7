"""A boxed tensor is what one source has of a tensor, as boxes of its elements: what rules of a mapping cut and join."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, product
from typing import Any

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.dtensors import is_dtensor, local_part
from ckpt_transport.checkpoint.given import check_plain
from ckpt_transport.checkpoint.given_tensor import GivenTensor
from ckpt_transport.checkpoint.low_rank import LowRank
from ckpt_transport.checkpoint.parts import parts_in_boxes
from ckpt_transport.checkpoint.shards import TensorShard, check_shard
from ckpt_transport.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Box:
    """A box of a tensor.

    Attributes:
        tensor: its elements, in its shape, as a view of what the source has given.
        offsets: where it starts in each dimension.
        replicated: other sources have it, too.
        added: is added to its elements on the way.
    """

    tensor: torch.Tensor
    offsets: tuple[int, ...]
    replicated: bool
    added: tuple[LowRank, ...] = ()

    def narrow(self, dim: int, start: int, length: int) -> Box:
        """The elements with these indices in one dimension, counted from the box's first. It is where it was."""
        added = tuple(each.narrow(dim, start, length) for each in self.added)
        return replace(self, tensor=self.tensor.narrow(dim, start, length), added=added)


@dataclass(frozen=True, slots=True)
class BoxedTensor:
    """What one source has of a tensor. Every method returns another one, of views of the same memory.

    Attributes:
        dtype: of the tensor as it is to be sent.
        shape: of the whole tensor.
        boxes: what this source has of it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    @classmethod
    def of(cls, name: str, value: Any, *, replicated: bool) -> BoxedTensor:
        """
        Args:
            name, value: as a source gives them.
            replicated: a plain tensor is the same at every source that gives it.

        Raises:
            CheckpointError: as :func:`~ckpt_transport.checkpoint.parts.given`, or it is of elements below a byte.
        """
        if is_dtensor(value):
            shape, dtype = tuple(value.shape), value.dtype
            boxes = tuple(_boxes_of_dtensor(name, value))
        elif isinstance(value, torch.Tensor):
            check_plain(name, value)
            shape, dtype = tuple(value.shape), value.dtype
            boxes = (Box(value.detach(), (0,) * len(shape), replicated),)
        else:
            shards: Sequence[TensorShard] = [value] if isinstance(value, TensorShard) else value
            for shard in shards:
                check_shard(name, shard)
            shape, dtype = tuple(shards[0].shape), shards[0].tensor.dtype
            boxes = tuple(Box(each.tensor.detach(), tuple(each.offsets), each.replicated) for each in shards)
        if dtypes.BITS[dtypes.name_of(dtype)] % 8:
            raise CheckpointError(f"tensor '{name}' is {dtypes.name_of(dtype)}, which can be renamed and nothing else")
        return cls(dtype, shape, boxes)

    def given(self, name: str) -> list[GivenTensor]:
        """The boxes as what a source gives.

        Raises:
            CheckpointError: as :func:`~ckpt_transport.checkpoint.parts.given`.
        """
        found: list[GivenTensor] = []
        for box in sorted(self.boxes, key=lambda box: box.offsets):
            shard = TensorShard(box.tensor, self.shape, box.offsets, box.replicated)
            parts = parts_in_boxes(name, [shard], dtypes.name_of(self.dtype))
            found += (part._replace(added=box.added) for part in parts) if box.added else parts
        return found

    def plus(self, left: torch.Tensor, right: torch.Tensor, scaling: float) -> BoxedTensor:
        """The same matrix with ``scaling * left @ right`` added on the way."""
        boxes: list[Box] = []
        for box in self.boxes:
            (row, column), (rows, columns) = box.offsets, box.tensor.shape
            device, dtype = box.tensor.device, torch.promote_types(box.tensor.dtype, torch.float32)
            left_of_box = left.narrow(0, row, rows).to(device, dtype)
            right_of_box = right.narrow(1, column, columns).to(device, dtype)
            boxes.append(replace(box, added=(*box.added, LowRank(left_of_box, right_of_box, scaling))))
        return replace(self, boxes=tuple(boxes))

    def cast(self, dtype: torch.dtype) -> BoxedTensor:
        """The same elements, to be sent as ``dtype``."""
        return replace(self, dtype=dtype)

    def cut(self, dim: int, start: int, end: int) -> BoxedTensor:
        """The elements with these indices in one dimension."""
        shape = (*self.shape[:dim], end - start, *self.shape[dim + 1 :])
        return replace(self, shape=shape, boxes=tuple(_cut(self.boxes, dim, start, end)))

    def split(self, dim: int, sizes: Iterable[int]) -> list[BoxedTensor]:
        """Pieces of these sizes along one dimension."""
        return [self.cut(dim, start, end) for start, end in pairwise(accumulate(sizes, initial=0))]

    def select(self, index: int) -> BoxedTensor:
        """The elements with this index in the first dimension, without that dimension."""
        row = self.cut(0, index, index + 1)
        boxes = (
            replace(box, tensor=box.tensor[0], offsets=box.offsets[1:], added=tuple(each.first() for each in box.added))
            for box in row.boxes
        )
        return replace(row, shape=row.shape[1:], boxes=tuple(boxes))

    def stacked(self) -> BoxedTensor:
        """The same with a dimension of one index in front."""
        boxes = (
            Box(
                box.tensor.unsqueeze(0),
                (0, *box.offsets),
                box.replicated,
                tuple(each.unsqueeze() for each in box.added),
            )
            for box in self.boxes
        )
        return replace(self, shape=(1, *self.shape), boxes=tuple(boxes))

    def same_as(self, other: BoxedTensor) -> bool | None:
        """Whether both have equal bytes; None where this source cannot say it, because it has different boxes."""
        if (self.dtype, self.shape) != (other.dtype, other.shape) or any(
            box.added for box in (*self.boxes, *other.boxes)
        ):
            return False
        if [box.offsets for box in self.boxes] != [box.offsets for box in other.boxes]:
            return None
        pairs = zip(self.boxes, other.boxes, strict=True)
        return all(_equal(one.tensor, two.tensor) for one, two in pairs)


def joined(tensors: Sequence[BoxedTensor], dim: int) -> BoxedTensor:
    """These tensors one behind the other along one dimension. All of them have one dtype and, but for it, one shape."""
    boxes: list[Box] = []
    end = 0
    for tensor in tensors:
        boxes += (replace(box, offsets=_moved(box.offsets, dim, end)) for box in tensor.boxes)
        end += tensor.shape[dim]
    first = tensors[0]
    return BoxedTensor(first.dtype, (*first.shape[:dim], end, *first.shape[dim + 1 :]), tuple(boxes))


def _cut(boxes: Iterable[Box], dim: int, start: int, end: int) -> Iterable[Box]:
    for box in boxes:
        offset, size = box.offsets[dim], box.tensor.shape[dim]
        low, high = max(start, offset), min(end, offset + size)
        if low < high or (not size and start <= offset <= end):
            narrowed = box.narrow(dim, low - offset, max(high - low, 0))
            yield replace(narrowed, offsets=_moved(box.offsets, dim, max(low, start) - start - offset))


def _moved(offsets: tuple[int, ...], dim: int, by: int) -> tuple[int, ...]:
    return (*offsets[:dim], offsets[dim] + by, *offsets[dim + 1 :])


def _boxes_of_dtensor(name: str, value: Any) -> Iterable[Box]:
    """A rank's part of a DTensor lies in several boxes where its indices of a dimension are several runs."""
    part = local_part(name, value)
    if part is None or not part.tensor.numel():
        return
    places = [list(zip(accumulate((e - s for s, e in runs), initial=0), runs, strict=False)) for runs in part.runs]
    for chosen in product(*places):
        tensor = part.tensor
        for dim, (at, (start, end)) in enumerate(chosen):
            tensor = tensor.narrow(dim, at, end - start)
        yield Box(tensor, tuple(start for _, (start, _) in chosen), part.replicated)


def _equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether the bytes are equal: NaN equals itself, and 0 is not -0."""
    if (one.data_ptr(), one.stride()) == (two.data_ptr(), two.stride()) and one.device == two.device:
        return True
    raw = [each.contiguous().reshape(-1).view(torch.uint8) for each in (one, two)]
    return torch.equal(raw[0], raw[1].to(raw[0].device))
