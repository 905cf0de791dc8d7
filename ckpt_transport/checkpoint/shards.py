"""A source may give a part of a tensor, as a sharded trainer has it; this module finds out which bytes that is.

A part is described by *runs* of each dimension: a rank that holds rows 0 to 1 and 4 to 5 of eight, and all columns,
has the runs ``[(0, 2), (4, 6)], [(0, columns)]``. A plain box has one run in each. DTensors are cut as torch cuts them
(``torch.distributed.tensor.placement_types``): ``Shard`` is ``torch.chunk``, and ``_StridedShard``, which FSDP2 makes
of what tensor parallelism has cut already, is a chunk of each of several chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.copier import spec_of
from ckpt_transport.checkpoint.given import OWN_KINDS, check_plain, given_tensors, same_tensors, what
from ckpt_transport.checkpoint.low_rank import LowRank, Sum
from ckpt_transport.checkpoint.pool import lay_out
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Buffer
from ckpt_transport.planning.values.byte_ranges import ByteRange
from ckpt_transport.planning.values.manifest import PlacedTensor, TensorSpec

if TYPE_CHECKING:
    from typing_extensions import TypeIs

MOST_RANGES = 1 << 16
"""So many ranges of bytes a part may consist of; each is planned by itself."""

Run = tuple[int, int]
"""First index of a run in one dimension, and its end."""


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


def comes_in_pairs(tensors: Tensors | TensorPairs) -> TypeIs[TensorPairs]:
    """Whether these are pairs, of which each may be looked at once, and not a mapping that has them all."""
    return isinstance(tensors, Iterable) and not isinstance(tensors, Mapping | torch.Tensor | torch.nn.Module)


def parts_of(value: object) -> Sequence[torch.Tensor]:
    """What a source has of one tensor of :data:`Tensors`; nothing of what is none."""
    if isinstance(value, torch.Tensor):
        return [value]
    shards = value if isinstance(value, Sequence) else [value]
    tensors = [shard.tensor for shard in shards if isinstance(shard, TensorShard)]
    return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]


class GivenTensor(NamedTuple):
    """A tensor as one source gives it: whole, or a part.

    Attributes:
        spec: name, dtype and shape of the whole tensor, as it is to be sent.
        tensor: what this source has of it; where it has another dtype, it is cast on the way.
        ranges: of the whole tensor's bytes, in the order in which ``tensor`` has them.
        replicated: other sources give the same bytes.
        added: is added to its elements on the way.
    """

    spec: TensorSpec
    tensor: torch.Tensor
    ranges: Sequence[ByteRange]
    replicated: bool
    added: tuple[LowRank, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(end - start for start, end in self.ranges)

    @property
    def cast(self) -> bool:
        """Whether it is sent in another dtype than it has."""
        return self.tensor.dtype is not dtypes.TORCH[self.spec.dtype]

    @property
    def computed(self) -> bool:
        """Whether other bytes are sent than ``tensor`` has."""
        return self.cast or bool(self.added)

    def elements(self) -> Iterator[torch.Tensor]:
        """The elements that are sent, before they are cast: all at once, or in blocks where they are computed."""
        if not self.added:
            yield self.tensor.detach()
            return
        yield from (block for _, block in Sum(self.tensor, self.added).blocks(0, self.tensor.numel()))


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


def lay_out_parts(parts: Sequence[GivenTensor]) -> tuple[list[int], int]:
    """Put what is given one after another, as :func:`lay_out` does; what continues a tensor follows it at once.

    Returns: where each starts, and the size of the extent.
    """
    first = [number for number, part in enumerate(parts) if not (number and _continues(parts[number - 1], part))]
    sizes = [part.nbytes for part in parts]
    starts, nbytes = lay_out(sum(sizes[low:high]) for low, high in pairwise([*first, len(parts)]))
    offsets: list[int] = []
    for start, low, high in zip(starts, first, [*first[1:], len(parts)], strict=True):
        offsets += accumulate(sizes[low : high - 1], initial=start)
    return offsets, nbytes


def _continues(part: GivenTensor, other: GivenTensor) -> bool:
    """Whether a part begins where one ends, so that both are one range of the bytes of a tensor."""
    return part.ranges[-1].end == other.ranges[0].start and part.spec == other.spec and bool(other.ranges[0].start)


def place(tensors: Sequence[GivenTensor], offsets: Sequence[int], extent: int = 0) -> list[PlacedTensor]:
    """Say where the bytes of these tensors lie in an extent, where each starts at its offset."""
    placed: list[PlacedTensor] = []
    for tensor, offset in zip(tensors, offsets, strict=True):
        for start, end in tensor.ranges:
            last = placed[-1] if placed and start else None
            if (
                last is not None
                and last.start + last.nbytes == start
                and last.offset + last.nbytes == offset
                and last.spec == tensor.spec
            ):
                placed[-1] = PlacedTensor(tensor.spec, extent, last.offset, last.nbytes + end - start, last.start)
            else:
                placed.append(PlacedTensor(tensor.spec, extent, offset, end - start, start))
            offset += end - start
    return placed


def offsets_in(pool: Buffer, parts: Sequence[GivenTensor]) -> tuple[list[GivenTensor], list[int]] | None:
    """Where these lie in a pool that they are views of, ascending; None where one is computed, or has gaps."""
    if any(part.computed or not part.tensor.is_contiguous() for part in parts):
        return None
    base = pool.tensor.data_ptr()
    offsets = [part.tensor.data_ptr() - base if part.nbytes else 0 for part in parts]
    order = sorted(range(len(parts)), key=offsets.__getitem__)
    return [parts[number] for number in order], [offsets[number] for number in order]


def labels_of(tensors: Sequence[GivenTensor]) -> list[str]:
    """What people call each: by the name of its tensor, and a part that does not begin it also by its first byte."""
    return [
        f"{tensor.spec.name}[{tensor.ranges[0].start}:]" if tensor.ranges[0].start else tensor.spec.name
        for tensor in tensors
    ]


def replicated_names(tensors: Sequence[GivenTensor]) -> tuple[str, ...]:
    """Names of those that other sources give, too."""
    return tuple(dict.fromkeys(tensor.spec.name for tensor in tensors if tensor.replicated))


def same_names(tensors: Sequence[GivenTensor]) -> tuple[tuple[str, ...], ...]:
    """Names under which the same elements were given, as tied weights are by ``state_dict()``."""
    ranges = {tensor.spec.name: (tensor.spec.dtype, tensor.ranges) for tensor in tensors}
    single = len(ranges) == len(tensors)
    plain = {tensor.spec.name: tensor.tensor for tensor in tensors if not tensor.added}
    found = same_tensors(plain) if single else ()
    return tuple(names for names in found if all(ranges[name] == ranges[names[0]] for name in names))


def is_dtensor(value: object) -> bool:
    """Whether it is a tensor of which this rank has a part."""
    return isinstance(value, torch.Tensor) and hasattr(value, "full_tensor") and hasattr(value, "placements")


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


def _is_part(value: object) -> bool:
    boxes = isinstance(value, Sequence) and bool(value) and all(isinstance(box, TensorShard) for box in value)
    return boxes or isinstance(value, TensorShard) or is_dtensor(value)


def _whole(name: str, tensor: torch.Tensor, *, replicated: bool) -> GivenTensor:
    spec, ranges = _described(name, tensor.dtype, dtypes.shape_of(tensor))
    return GivenTensor(spec, tensor, ranges, replicated)


@lru_cache(maxsize=1 << 16)
def _described(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[TensorSpec, tuple[ByteRange, ...]]:
    """What a whole tensor declares, and the range of its bytes. Every step of a training run asks for the same."""
    spec = spec_of(name, dtype, shape)
    return spec, (ByteRange(0, spec.nbytes),)


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


def check_shard(name: str, shard: TensorShard) -> None:
    """
    Raises:
        CheckpointError: what it holds is no plain tensor; names it, and says what to give.
    """
    if not isinstance(shard.tensor, torch.Tensor):
        raise CheckpointError(f"a shard of '{name}' is {what(shard.tensor)}")
    check_plain(name, shard.tensor)


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
    local = value.to_local().detach()
    check_plain(name, local)
    runs = runs_of(shape, value.device_mesh.shape, coordinate, value.placements)
    copies = any(
        placement.is_replicate() and size > 1
        for placement, size in zip(value.placements, value.device_mesh.shape, strict=True)
    )
    return LocalPart(local, runs, copies)


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
    yield GivenTensor(spec, local, byte_ranges(spec, runs), replicated or not spec.nbytes)


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


def chunk(runs: Sequence[Run], chunks: int, number: int) -> list[Run]:
    """What ``torch.chunk`` gives as chunk ``number`` of ``chunks`` of these indices, laid out one behind the other."""
    total = sum(end - start for start, end in runs)
    step = -(-total // chunks)
    low, high = min(number * step, total), min((number + 1) * step, total)
    found: list[Run] = []
    reached = 0
    for start, end in runs:
        first, last = max(low - reached, 0), min(high - reached, end - start)
        if first < last:
            found.append((start + first, start + last))
        reached += end - start
    return found


def byte_ranges(spec: TensorSpec, runs: Sequence[Sequence[Run]]) -> list[ByteRange]:
    """The bytes of a tensor that have these indices, in the order of the part's own memory.

    Raises:
        CheckpointError: these are too many ranges.
    """
    cut = [dim for dim, size in enumerate(spec.shape) if list(runs[dim]) != [(0, size)]]
    if not cut or not spec.nbytes:
        return [ByteRange(0, spec.nbytes)]
    last, itemsize = cut[-1], dtypes.BITS[spec.dtype] // 8
    strides = [math.prod(spec.shape[dim + 1 :]) * itemsize for dim in range(last + 1)]
    count = len(runs[last]) * math.prod(sum(end - start for start, end in runs[dim]) for dim in range(last))
    if count > MOST_RANGES:
        raise CheckpointError(
            f"this rank's part of tensor {spec} lies in {count:,} ranges of its bytes, because it is cut along "
            f"dimension {last}, and at most {MOST_RANGES:,} can be planned; redistribute it to Shard(0), or give "
            "full_tensor() of it"
        )
    outer = [[index for start, end in runs[dim] for index in range(start, end)] for dim in range(last)]
    found: list[ByteRange] = []
    for indices in product(*outer):
        base = sum(index * stride for index, stride in zip(indices, strides, strict=False))
        for start, end in runs[last]:
            low, high = base + start * strides[last], base + end * strides[last]
            if found and found[-1].end == low:
                low = found.pop().start
            found.append(ByteRange(low, high))
    return found
