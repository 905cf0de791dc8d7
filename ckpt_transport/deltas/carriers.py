"""A source makes carriers of what differs between a version that it holds and the base, which lies alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import gcd
from operator import attrgetter
from typing import NamedTuple

from ckpt_transport import dtypes
from ckpt_transport.deltas.compared_bytes import ComparedBytes, MadeBytes
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.encoding import encode_each
from ckpt_transport.memory import Buffer
from ckpt_transport.planning import Carrier, Delta, DeltaForm, Extent, Manifest, PlacedTensor, TensorSpec
from ckpt_transport.planning.values.alignment import ALIGNMENT

TOGETHER = 8 << 30
"""So many bytes are compared together on a GPU, which has a bit for each of their elements meanwhile."""
TOGETHER_ON_HOST = 256 << 20
"""On the host, which keeps what differs in them until it is encoded."""
MADE_TOGETHER = 2 << 30
"""Of bytes that are made for that, from the first to the last of them."""
SMALL_BYTES = 1 << 16
"""A tensor that is no larger goes into the range before it, whatever its type, where that has smaller elements."""


class DeltaRange(NamedTuple):
    """A range of an extent that is compared as a whole.

    Attributes:
        extent: its index.
        offset, nbytes: in bytes, multiples of ``unit``.
        unit: bytes of an element.
    """

    extent: int
    offset: int
    nbytes: int
    unit: int


class Difference(NamedTuple):
    """What differs in one range, or those elements of it that certain shares have.

    Attributes:
        range, encoded: where, and how.
        shares: numbers of the shares, where it is divided among them.
    """

    range: DeltaRange
    encoded: Encoded
    shares: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Differences:
    """What differs between two versions.

    Attributes:
        found: of each range in which something does, or of one where nothing does.
        elements: how many elements were compared.
        shares: names of the shares that they are for; none where all are for everybody.
    """

    found: tuple[Difference, ...]
    elements: int
    shares: tuple[str, ...] = ()

    @property
    def changed(self) -> int:
        """How many elements are carried."""
        return sum(difference.encoded.count for difference in self.found)

    @property
    def nbytes(self) -> int:
        """Bytes that carry them."""
        return sum(difference.encoded.raw.numel() for difference in self.found)


def ranges_of(tensors: Iterable[PlacedTensor], most: int) -> list[DeltaRange]:
    """Cut the memory of tensors into ranges of elements of one size.

    Args:
        tensors: of a manifest, in any order.
        most: bytes of a range.
    """
    most = max(most - most % ALIGNMENT, ALIGNMENT)
    ordered = sorted(filter(attrgetter("nbytes"), tensors), key=lambda tensor: (tensor.extent, tensor.offset))
    found: list[DeltaRange] = []
    for extent, placed in groupby(ordered, key=attrgetter("extent")):
        for start, end, unit in _stretches(placed):
            for offset in range(start, end, most):
                nbytes = min(most, end - offset)
                found.append(DeltaRange(extent, offset, nbytes, gcd(unit, offset, nbytes)))
    return found


def _stretches(tensors: Iterable[PlacedTensor]) -> Iterable[tuple[int, int, int]]:
    """Where neighbours begin and end that are compared alike, and the size of their elements."""
    start = end = unit = 0
    for tensor in tensors:
        size = dtypes.alignment(tensor.spec.dtype)
        alike = size == unit or (tensor.nbytes <= SMALL_BYTES and size % (unit or size + 1) == 0)
        if unit and alike and tensor.offset <= end + ALIGNMENT:
            end = max(end, tensor.offset + tensor.nbytes)
            continue
        if unit:
            yield start, end, unit
        start, end, unit = tensor.offset, tensor.offset + tensor.nbytes, size
    if unit:
        yield start, end, unit


def why_unlike(base: Manifest, new: Manifest) -> str:
    """Why one cannot be compared with the other, byte by byte; empty when it can."""
    if base.tensors != new.tensors:
        return f"the tensors of '{new.version}' are not those of '{base.version}', or lie in another order"
    if [extent.nbytes for extent in base.extents] != [extent.nbytes for extent in new.extents]:
        return f"'{new.version}' lies in other memory than '{base.version}'"
    return ""


def find_differences(
    ranges: Sequence[DeltaRange],
    base: Sequence[Buffer],
    new: Sequence[ComparedBytes],
    most: int,
    check: Callable[[], None],
) -> Differences | None:
    """Compare two versions that lie alike, and encode what differs; None where that takes more than ``most`` bytes.

    Args:
        ranges: what to compare.
        base, new: what is behind the extents of both, each on the device of its like.
        most: bytes.
        check: called before some ranges that are compared together; what it raises ends the search.
    """
    found: list[Difference] = []
    for group in _together(ranges, new):
        check()
        olds = [base[each.extent].tensor[each.offset : each.offset + each.nbytes] for each in group]
        nows = new[group[0].extent].parts([(each.offset, each.nbytes) for each in group])
        encoded = encode_each(olds, nows, group[0].unit, most)
        if encoded is None:
            return None
        most -= sum(each.raw.numel() for each in encoded)
        found += [Difference(*each) for each in zip(group, encoded, strict=True) if each[1].count]
    if ranges and not found:
        found.append(_one_element(ranges[0], new))
    return Differences(tuple(found), sum(each.nbytes // each.unit for each in ranges))


def _together(ranges: Sequence[DeltaRange], new: Sequence[ComparedBytes]) -> Iterable[Sequence[DeltaRange]]:
    """Ranges that are compared together, one at least, of elements of one size in one extent."""
    group: list[DeltaRange] = []
    for each in ranges:
        if group and not (
            (each.unit, each.extent) == (group[0].unit, group[0].extent)
            and each.offset + each.nbytes - group[0].offset <= _most_together(new[each.extent])
        ):
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _most_together(some: ComparedBytes) -> int:
    """Bytes from the first to the last of those that are compared together."""
    most = TOGETHER_ON_HOST if some.device.type == "cpu" else TOGETHER
    return min(most, MADE_TOGETHER) if isinstance(some, MadeBytes) else most


def _one_element(first: DeltaRange, new: Sequence[ComparedBytes]) -> Difference:
    """One that has not changed, so that a version is brought that is the same as its base."""
    only = first._replace(nbytes=first.unit)
    (raw,) = new[only.extent].parts([(only.offset, only.nbytes)])
    return Difference(only, Encoded(DeltaForm.WHOLE, 1, raw.clone()))


def delta_manifest(
    version: Manifest, base: str, differences: Differences, extent: Extent, offsets: Sequence[int]
) -> Manifest:
    """The manifest of carriers.

    Args:
        version: what the source holds of the version itself.
        base: the name of the base.
        differences: what differs.
        extent: the memory of the carriers.
        offsets: where the bytes of each lie there.
    """
    tensors: list[PlacedTensor] = []
    carriers: list[Carrier] = []
    for number, (difference, offset) in enumerate(zip(differences.found, offsets, strict=True)):
        where, encoded, shares = difference
        spec = TensorSpec(f"delta.{extent.owner}.{number}", "U8", (encoded.raw.numel(),))
        tensors.append(PlacedTensor(spec, 0, offset, spec.nbytes))
        carriers.append(Carrier(spec.name, *where, encoded.form, encoded.count, shares))
    delta = Delta(base, version.tensors, tuple(carriers), differences.shares)
    return Manifest(version.version, (extent,), tuple(tensors), mappings=version.mappings, deltas=(delta,))
