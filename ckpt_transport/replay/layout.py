"""Describes what a loader does with a checkpoint."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ckpt_transport import dtypes
from ckpt_transport.planning import TensorSpec


class Geometry(msgspec.Struct, frozen=True, gc=False):
    """Where the elements of a copy lie in a tensor's memory.

    Attributes:
        offset: of the first, in bytes from the start of the tensor.
        strides: of each dimension, in bytes.
        dtype: safetensors' name of their type.
    """

    offset: int
    strides: tuple[int, ...]
    dtype: str


class Copy(msgspec.Struct, frozen=True, gc=False):
    """Some elements of one tensor of the checkpoint are copied to one target, and converted where the types differ.

    Attributes:
        source: index into the layout's sources.
        target: index into its targets.
        shape: in elements, of what is copied.
        read, write: where it lies in the source and in the target.
    """

    source: int
    target: int
    shape: tuple[int, ...]
    read: Geometry
    write: Geometry

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return math.prod(self.shape) * dtypes.TORCH[self.write.dtype].itemsize


class Fill(msgspec.Struct, frozen=True, gc=False):
    """The loader sets some elements of a target to a constant."""

    target: int
    shape: tuple[int, ...]
    write: Geometry
    value: bool | int | float


class OwnerKind(enum.StrEnum):
    """What memory belongs to: a tensor of the checkpoint, one of the module, or what an operation has made."""

    SOURCE = "source"
    TARGET = "target"
    RESULT = "result"


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """What memory belongs to.

    Attributes:
        kind: which of these it is.
        index: of the source; of the target, or of the first one in that memory; of the result.
    """

    kind: OwnerKind
    index: int


class Ref(msgspec.Struct, frozen=True):
    """A tensor as an operation sees it.

    Attributes:
        kind: what it is a view of.
        index: which source or target, or which result of an earlier operation of the same group.
        shape: in elements.
        geometry: where they lie in that tensor's memory.
    """

    kind: OwnerKind
    index: int
    shape: tuple[int, ...]
    geometry: Geometry


class Operation(msgspec.Struct, frozen=True):
    """One operation of torch.

    Attributes:
        op: the operation, as ``torch.ops.aten.exp.default``.
        args, kwargs: what it is called with, as :func:`~ckpt_transport.replay.arguments.encode` makes it.
        results: numbers of the results that it makes; empty when it writes its first argument.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...]

    @property
    def written(self) -> Ref | None:
        """What it writes of a target; None when it writes none."""
        written = self.args[0] if self.args and not self.results else None
        return written if isinstance(written, Ref) and written.kind is OwnerKind.TARGET else None


class OpGroup(msgspec.Struct, frozen=True):
    """Operations that run in this order, once all of ``sources`` are there."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]
    operations: tuple[Operation, ...]


class TargetTensor(msgspec.Struct, frozen=True):
    """A parameter or buffer.

    Attributes:
        name: its name in the module.
        also: other names of the same memory: tied weights.
        dtype: safetensors' name of its type.
        shape, strides: in elements.
        parameter: it is a parameter, not a buffer.
    """

    name: str
    also: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    parameter: bool


class Gap(msgspec.Struct, frozen=True):
    """The loader does not write some bytes of a target, for a reason."""

    target: int
    nbytes: int
    reason: str


class Layout(msgspec.Struct, frozen=True):
    """Which slice of which tensor a loader puts where.

    Attributes:
        sources: the tensors of the checkpoint.
        targets: the parameters and buffers that can be loaded.
        copies, fills, op_groups: all that the loader does. Each byte is written by one of them, or by none.
        gaps: what none of them writes.
        unread: sources that the loader was not seen to use.
        refused: sources and targets that only the loader itself can load, and why. They are in none of the above.
    """

    sources: tuple[TensorSpec, ...]
    targets: tuple[TargetTensor, ...]
    copies: tuple[Copy, ...]
    fills: tuple[Fill, ...]
    op_groups: tuple[OpGroup, ...]
    gaps: tuple[Gap, ...]
    unread: tuple[int, ...]
    refused: Mapping[Owner, str]

    def refused_of(self, kind: OwnerKind) -> dict[int, str]:
        """The refused sources or targets, by index, and why."""
        return {owner.index: reason for owner, reason in self.refused.items() if owner.kind is kind}

    def name_of(self, kind: OwnerKind, index: int) -> str:
        """The name of a source or target."""
        return (self.sources if kind is OwnerKind.SOURCE else self.targets)[index].name

    def why(self, limit: int = 3) -> str:
        """The refusals in one line; empty when there are none."""
        told = sorted(f"{self.name_of(each.kind, each.index)}: {reason}" for each, reason in self.refused.items())
        more = f" (and {len(told) - limit} more)" if len(told) > limit else ""
        return "; ".join(told[:limit]) + more
