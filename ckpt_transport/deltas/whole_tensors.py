"""Tensors of which single elements are of no use to a sink go whole, beside what differs in the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, groupby
from math import gcd
from operator import attrgetter
from typing import NamedTuple

from ckpt_transport import dtypes
from ckpt_transport.deltas.carriers import DeltaRange, Difference, Differences, find_differences, ranges_of
from ckpt_transport.deltas.compared_bytes import ComparedBytes
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.memory import Buffer
from ckpt_transport.planning import DeltaForm, PlacedTensor


class VersionRanges(NamedTuple):
    """The memory of a version, cut into ranges.

    Attributes:
        compared: ranges that are compared with a base.
        whole: ranges that are sent whatever has changed; none has a byte of a tensor that is compared.
    """

    compared: Sequence[DeltaRange] = ()
    whole: Sequence[DeltaRange] = ()

    @property
    def whole_nbytes(self) -> int:
        """Bytes that are sent whatever has changed."""
        return sum(each.nbytes for each in self.whole)


def cut(tensors: Iterable[PlacedTensor], most: int, whole: Collection[str] = ()) -> VersionRanges:
    """Cut the memory of tensors into ranges of elements of one size.

    Args:
        tensors: of a manifest, in any order.
        most: bytes of a range that is compared.
        whole: names of those that go whole. So do others that share memory with one of them.
    """
    compared: list[DeltaRange] = []
    found: list[DeltaRange] = []
    for is_whole, together in groupby(
        _apart(tensors), key=lambda each: any(tensor.spec.name in whole for tensor in each)
    ):
        if is_whole:
            found += map(_range_of, together)
        else:
            compared += ranges_of(chain.from_iterable(together), most)
    return VersionRanges(compared, found)


def find_what_is_sent(
    ranges: VersionRanges, base: Sequence[Buffer], new: Sequence[ComparedBytes], most: int, check: Callable[[], None]
) -> Differences | None:
    """What differs in the ranges that are compared, and all of the others, which is not copied where it lies in a copy.

    Args: see :func:`~ckpt_transport.deltas.find_differences`.

    Returns: None where that takes more than ``most`` bytes.
    """
    left = most - ranges.whole_nbytes
    compared = find_differences(ranges.compared, base, new, left, check) if left >= 0 else None
    if compared is None:
        return None
    whole = [_all_of(each, new) for each in ranges.whole]
    elements = compared.elements + sum(each.encoded.count for each in whole)
    return Differences((*compared.found, *whole), elements)


def _all_of(where: DeltaRange, new: Sequence[ComparedBytes]) -> Difference:
    (raw,) = new[where.extent].parts([(where.offset, where.nbytes)])
    return Difference(where, Encoded(DeltaForm.WHOLE, where.nbytes // where.unit, raw))


def _apart(tensors: Iterable[PlacedTensor]) -> Iterator[list[PlacedTensor]]:
    """Tensors, together where they share memory; ascending."""
    together: list[PlacedTensor] = []
    end = 0
    for tensor in sorted(filter(attrgetter("nbytes"), tensors), key=attrgetter("extent", "offset")):
        if together and not (tensor.extent == together[0].extent and tensor.offset < end):
            yield together
            together, end = [], 0
        together.append(tensor)
        end = max(end, tensor.offset + tensor.nbytes)
    if together:
        yield together


def _range_of(together: Sequence[PlacedTensor]) -> DeltaRange:
    """The range that tensors which share memory lie in."""
    start = together[0].offset
    nbytes = max(tensor.offset + tensor.nbytes for tensor in together) - start
    unit = gcd(start, nbytes, *(dtypes.alignment(tensor.spec.dtype) for tensor in together))
    return DeltaRange(together[0].extent, start, nbytes, unit)
