"""A manifest says what a version holds and where its bytes lie."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Annotated

import msgspec

from ckpt_transport import dtypes
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import MemoryKind, StridedRange
from ckpt_transport.planning.values.block_order import BlockOrder, ColumnPart

_nbytes = lru_cache(maxsize=4096)(dtypes.nbytes)
"""A checkpoint has many tensors of few shapes, and planning and proving ask for the size of each."""
_bytes_of = attrgetter("nbytes")


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
        return _nbytes(self.dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype} {list(self.shape)})"


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """Contiguous memory in which a source keeps tensors: its pool, or tensors that it was lent.

    Attributes:
        owner: the source's rank.
        nbytes: its size.
        kind: where it lies; decides which transports can send from it in place.
        device: the UUID of the GPU on which other processes can map it; empty for none.
        reason: why none can, where it lies on GPUs; empty otherwise.
    """

    owner: int
    nbytes: int
    kind: MemoryKind
    device: str = ""
    reason: str = ""


class PlacedTensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor, or some of its bytes, and where they lie, one behind the other.

    Attributes:
        spec: name, dtype and shape of the whole tensor.
        extent: index into the manifest's extents.
        offset: of the first byte in that extent.
        nbytes: how many bytes.
        start: which byte of the tensor is the first; in the manifest of a plan its number, where the tensor is ordered.
        runs: of how many equally long runs of the tensor they are; one in the manifest of a plan.
        stride: how far apart these start in the tensor; of no meaning for one.
    """

    spec: TensorSpec
    extent: int
    offset: int
    nbytes: int
    start: int = 0
    runs: Annotated[int, msgspec.Meta(ge=1)] = 1
    stride: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.nbytes == self.spec.nbytes

    @property
    def part(self) -> StridedRange:
        """Which bytes of the tensor they are."""
        return StridedRange(self.start, self.nbytes // self.runs, self.runs, self.stride)


class TensorRange(msgspec.Struct, frozen=True, array_like=True):
    """A range of bytes of one tensor.

    Attributes:
        spec: name, dtype and shape of the tensor.
        start: the first byte.
        nbytes: how many bytes.
    """

    spec: TensorSpec
    start: int
    nbytes: int


class Conversion(msgspec.Struct, frozen=True, array_like=True):
    """Tensors that are computed from others when they are sent.

    Attributes:
        how: from what and in which way, in words.
        tensors: their names.
    """

    how: str
    tensors: tuple[str, ...]


class DeltaForm(enum.StrEnum):
    """How a carrier says which elements differ."""

    LIST = "list"
    MASK = "mask"
    WHOLE = "whole"


class Carrier(msgspec.Struct, frozen=True, array_like=True):
    """A tensor of bytes that carries what differs in one range of an extent.

    Attributes:
        name: of the tensor of the manifest that holds the encoded bytes.
        extent: index of the extent, as the tensors of the delta count them.
        offset, nbytes: the range, in bytes; both are multiples of ``unit``.
        unit: bytes of an element: 1, 2, 4 or 8.
        form: how it is encoded.
        count: elements that it carries.
        shares: numbers of the shares that have these elements. Who serves everything has them, too.
    """

    name: str
    extent: int
    offset: int
    nbytes: int
    unit: int
    form: DeltaForm
    count: int
    shares: tuple[int, ...] = ()


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one source brings of a version is its difference to a base; the tensors of its manifest are carriers.

    Attributes:
        base: the version that sinks must serve.
        tensors: what the source has of the version itself, where it lies in extents of its own; the base lies alike.
        carriers: what differs. Ranges that no carrier has are as in the base.
        shares: names of the shares of the version that carriers are for; none where all are for everybody.
    """

    base: str
    tensors: tuple[PlacedTensor, ...]
    carriers: tuple[Carrier, ...]
    shares: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True):
    """A manifest says what a version holds and where.

    Attributes:
        version: its name, as ``step-42``.
        extents: the memory it lies in; those of one owner are next to each other, in the order in which the owner
            registers them with a transport.
        tensors: what is to be moved: every tensor once, whole or in ranges of bytes, without what is present.
        present: what every sink has already, from an earlier plan of the same update.
        digests: of what one source holds, the digest of each tensor's bytes, in the order of ``tensors``, where the
            source has computed them; empty otherwise.
        conversions: what is known about tensors that the sources compute.
        same: of what one source holds, names that were given for one and the same tensor.
        replicated: of what one source holds, names of tensors whose bytes are the same at every source that has them.
        mappings: the rules by which sources have made names, types and shapes, in words; of each kind one.
        deltas: of each source what its tensors mean, where they are carriers; none where they are the version's own.
        ordered: tensors whose bytes the manifest of a plan numbers block by block; the shares of its sinks, too.
        columns: where the bytes come from of extents that the plan has made, the last ones, for these.
    """

    version: str
    extents: tuple[Extent, ...]
    tensors: tuple[PlacedTensor, ...]
    present: tuple[TensorRange, ...] = ()
    digests: tuple[bytes, ...] = ()
    conversions: tuple[Conversion, ...] = ()
    same: tuple[tuple[str, ...], ...] = ()
    replicated: tuple[str, ...] = ()
    mappings: tuple[str, ...] = ()
    deltas: tuple[Delta, ...] = ()
    ordered: tuple[BlockOrder, ...] = ()
    columns: tuple[ColumnPart, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes to be moved, without padding."""
        return sum(map(_bytes_of, self.tensors))

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor of the version, by name."""
        found = {tensor.spec.name: tensor.spec for tensor in self.tensors}
        return found | {held.spec.name: held.spec for held in self.present}

    @property
    def fingerprint(self) -> str:
        """A hash of the names, types, shapes and bytes of all tensors, in hexadecimal; empty without digests.

        Equal fingerprints mean equal weights, wherever and in whatever order they lie: it is BLAKE2b over the digests,
        which are BLAKE2b of the bytes.
        """
        if not self.digests:
            return ""
        known = sorted(
            (tensor.spec.name, tensor.spec.dtype, tensor.spec.shape, digest)
            for tensor, digest in zip(self.tensors, self.digests, strict=True)
        )
        return hashlib.blake2b(msgspec.msgpack.encode(known), digest_size=16).hexdigest()

    @property
    def owners(self) -> tuple[int, ...]:
        """Ranks that own at least one extent, ascending."""
        return tuple(sorted({extent.owner for extent in self.extents}))

    def owned_by(self, rank: int) -> Manifest:
        """This manifest, with that rank as the owner of everything."""
        extents = tuple(msgspec.structs.replace(extent, owner=rank) for extent in self.extents)
        return msgspec.structs.replace(self, extents=extents)

    def region_of(self, extent: int) -> int:
        """The position of an extent among those of its owner."""
        owner = self.extents[extent].owner
        return sum(1 for other in self.extents[:extent] if other.owner == owner)


def run_by_run(tensors: Iterable[PlacedTensor]) -> Iterator[PlacedTensor]:
    """The same bytes in single runs, for who knows no others.

    Raises:
        CheckpointError: there are bytes that their tensor does not have.
    """
    for tensor in tensors:
        if tensor.runs == 1:
            yield tensor
            continue
        spec, extent, offset, part = tensor.spec, tensor.extent, tensor.offset, tensor.part
        if part.end > spec.nbytes:
            raise CheckpointError(f"bytes up to {part.end} are said to be of tensor {spec}")
        for number in range(part.runs):
            start, at = part.start + number * part.stride, offset + number * part.nbytes
            yield PlacedTensor(spec, extent, at, part.nbytes, start)


def check_version(version: str, shard: Manifest) -> None:
    """Check that a source holds the version that was asked for.

    Raises:
        CheckpointError: ``shard`` is of another version.
    """
    if shard.version != version:
        raise CheckpointError(f"a source holds version '{shard.version}' where '{version}' was asked for")


def conversions_of(shards: Sequence[Manifest]) -> tuple[Conversion, ...]:
    """Gather what the sources that hold ``shards`` compute."""
    return gathered(conversion for shard in shards for conversion in shard.conversions)


def gathered(conversions: Iterable[Conversion]) -> tuple[Conversion, ...]:
    """One of each kind, with the tensors of all."""
    tensors: dict[str, dict[str, None]] = {}
    for conversion in conversions:
        tensors.setdefault(conversion.how, {}).update(dict.fromkeys(conversion.tensors))
    return tuple(Conversion(how, tuple(names)) for how, names in tensors.items())
