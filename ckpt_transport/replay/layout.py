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


class Ref(msgspec.Struct, frozen=True, gc=False):
    """A view of the memory of a source, of a target, or of a result of an earlier operation of the same group.

    Attributes:
        kind: which of these it is.
        index: which one of them.
        shape: in elements.
        offset: of the first element, in bytes from the start of that memory.
        strides: of each dimension, in bytes.
        dtype: safetensors' name of the elements' type.
    """

    kind: OwnerKind
    index: int
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return dtypes.TORCH[self.dtype].itemsize


class Copy(msgspec.Struct, frozen=True, gc=False):
    """Some elements of one source are copied to one target, and converted where the types differ."""

    read: Ref
    write: Ref

    @property
    def source(self) -> int:
        """Index into the layout's sources."""
        return self.read.index

    @property
    def target(self) -> int:
        """Index into its targets."""
        return self.write.index

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return math.prod(self.write.shape) * self.write.itemsize


class Fill(msgspec.Struct, frozen=True, gc=False):
    """The loader sets some elements of a target to a constant."""

    write: Ref
    value: bool | int | float


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

    @property
    def written(self) -> list[Ref]:
        """What it writes of targets, each view once."""
        return list(dict.fromkeys(each.written for each in self.operations if each.written is not None))


class TargetTensor(msgspec.Struct, frozen=True):
    """A parameter or buffer.

    Attributes:
        name: its name in the module.
        also: other names of the same memory: tied weights.
        parameter: it is a parameter, not a buffer.
    """

    name: str
    also: tuple[str, ...]
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
