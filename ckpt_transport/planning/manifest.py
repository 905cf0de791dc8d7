"""What a version holds and where its bytes lie. Values only."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ckpt_transport import dtypes
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import MemoryKind


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor as a checkpoint declares it.

    Attributes:
        name: its name in the checkpoint.
        dtype: safetensors' name of its type, as ``BF16``.
        shape: in elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return dtypes.nbytes(self.dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype} {list(self.shape)})"


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """A contiguous run of memory in which a source keeps tensors: its pool, or one mapped file.

    Attributes:
        owner: the source's rank.
        nbytes: its size.
        kind: where it lies; decides which transports can send from it in place.
    """

    owner: int
    nbytes: int
    kind: MemoryKind


class PlacedTensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor and where its bytes are.

    Attributes:
        spec: name, dtype and shape.
        extent: index into the manifest's extents.
        offset: of its first byte in that extent.
        nbytes: its size.
    """

    spec: TensorSpec
    extent: int
    offset: int
    nbytes: int


class Conversion(msgspec.Struct, frozen=True, array_like=True):
    """Tensors that are computed from others when they are sent.

    Attributes:
        how: from what and in which way, in words.
        tensors: indices into the manifest's tensors.
    """

    how: str
    tensors: tuple[int, ...]


class Manifest(msgspec.Struct, frozen=True):
    """What a version holds.

    Attributes:
        version: its name, as ``step-42``.
        extents: the memory it lies in; those of one owner are next to each other, in the order in which the owner
            registers them with a transport.
        tensors: every tensor, once.
        conversions: what is known about tensors that the sources compute.
    """

    version: str
    extents: tuple[Extent, ...]
    tensors: tuple[PlacedTensor, ...]
    conversions: tuple[Conversion, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def owners(self) -> tuple[int, ...]:
        """Ranks that own at least one extent, ascending."""
        return tuple(sorted({extent.owner for extent in self.extents}))

    def region_of(self, extent: int) -> int:
        """The position of an extent among its owner's own."""
        owner = self.extents[extent].owner
        return sum(1 for other in self.extents[:extent] if other.owner == owner)


def merge(version: str, shards: Iterable[Manifest]) -> Manifest:
    """The manifest of a whole version from those of its sources.

    Raises:
        CheckpointError: two sources hold a tensor of the same name, or a source holds another version.
    """
    extents: list[Extent] = []
    tensors: list[PlacedTensor] = []
    conversions: dict[str, list[int]] = {}
    holder: dict[str, int] = {}
    for shard in shards:
        if shard.version != version:
            raise CheckpointError(f"a source holds version '{shard.version}' where '{version}' was asked for")
        base = len(extents)
        extents.extend(shard.extents)
        for conversion in shard.conversions:
            conversions.setdefault(conversion.how, []).extend(len(tensors) + number for number in conversion.tensors)
        for tensor in shard.tensors:
            owner = shard.extents[tensor.extent].owner
            other = holder.setdefault(tensor.spec.name, owner)
            if other != owner or len(holder) != len(tensors) + 1:
                raise CheckpointError(f"tensor '{tensor.spec.name}' is held twice, by source ranks {other} and {owner}")
            tensors.append(PlacedTensor(tensor.spec, tensor.extent + base, tensor.offset, tensor.nbytes))
    converted = tuple(Conversion(how, tuple(numbers)) for how, numbers in conversions.items())
    return Manifest(version, tuple(extents), tuple(tensors), converted)
