"""What differs is divided among those who serve it: each carrier holds elements that the same shares have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.by_shares import divide_bits, divide_list
from ckpt_transport.deltas.carried_blocks import CarriedBlocks
from ckpt_transport.deltas.carriers import DeltaRange, Difference, Differences
from ckpt_transport.deltas.element_bits import ElementBits, encode_bits
from ckpt_transport.deltas.element_list import ElementList, encode_list
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.share_boxes import NO_BOXES, ShareBoxes, boxes_of
from ckpt_transport.planning import DeltaForm, PlacedTensor, ServedShares, name_of_share

MOST_SHARES = 62
"""Where there are more, everybody is sent everything: an element has a bit for each."""
TOGETHER = 16
"""So many blocks are divided at a time: of BF16 2 MiB, of which what differs stays in the cache."""

Part = ElementList | ElementBits


class ForShares:
    """Knows which elements of a version each share has.

    Args:
        tensors: of the version, and where they lie here.
        served: what sinks serve of it.

    Raises:
        DeltaRefusedError: a share has bytes that its tensor has not; names the tensor.
    """

    def __init__(self, tensors: Sequence[PlacedTensor], served: ServedShares) -> None:
        self._served = served
        self._numbers = tuple(range(len(served.shares) if len(served.shares) <= MOST_SHARES else 0))
        self._boxes = boxes_of(tensors, [served.shares[number] for number in self._numbers])

    def divide(self, differences: Differences) -> Differences:
        """The same differences, in carriers of which each is for those who serve its elements.

        What no sink serves is in none of them. Where nothing is left for a sink, all are sent an empty one.
        """
        if not self._numbers:
            return differences
        divided = list(self._divided(differences.found))
        if {number for part in divided for number in part.shares} != set(self._numbers):
            first = differences.found[0]
            divided.append(Difference(first.range, Encoded.nothing(first.encoded.raw.device), self._numbers))
        return Differences(tuple(divided), differences.elements, tuple(map(name_of_share, self._served.shares)))

    def _divided(self, found: Sequence[Difference]) -> Iterator[Difference]:
        work: list[Callable[[], Iterable[tuple[int, Part]]]] = []
        owners: list[int] = []
        for number, (where, encoded, _) in enumerate(found):
            near = self._boxes.get(where.extent, NO_BOXES).near(where.offset, where.offset + where.nbytes)
            parts = _parts_of(where, encoded, near)
            work += parts
            owners += [number] * len(parts)
        parts_of: defaultdict[int, defaultdict[int, list[Part]]] = defaultdict(lambda: defaultdict(list))
        for number, pieces in zip(owners, by_all_cores(lambda divide: list(divide()), work), strict=True):
            for bits, part in pieces:
                parts_of[number][bits].append(part)
        wanted = [
            (found[number], bits, pieces, len(by_bits) == 1)
            for number, by_bits in parts_of.items()
            for bits, pieces in sorted(by_bits.items())
            if bits or self._served.everything
        ]
        yield from by_all_cores(lambda each: self._carried(*each), wanted)

    def _carried(self, difference: Difference, bits: int, parts: Sequence[Part], alone: bool) -> Difference:
        """What the shares with these bits have of a difference; alone where that is all of it."""
        shares = tuple(number for number in self._numbers if bits >> number & 1)
        if alone:
            return difference._replace(shares=shares)
        where, encoded, _ = difference
        encode = encode_list if encoded.form is DeltaForm.LIST else encode_bits
        first, units, narrow = encode(parts, where.unit, where.nbytes)  # type: ignore[arg-type]
        there = where._replace(offset=where.offset + first * where.unit, nbytes=units * where.unit)
        return Difference(there, replace(narrow, raw=narrow.raw.to(encoded.raw.device)), shares)


def _parts_of(where: DeltaRange, encoded: Encoded, near: ShareBoxes) -> list[Callable[[], Iterable[tuple[int, Part]]]]:
    """What divides some blocks each."""
    if not encoded.count:
        return []
    if encoded.form is DeltaForm.LIST:
        listed = ElementList.of(encoded, where.unit, where.nbytes).blocks(TOGETHER)
        return [partial(divide_list, where, near, each) for each in listed]
    blocks = CarriedBlocks(encoded.raw.cpu(), encoded.form, where.unit, where.nbytes, encoded.count)
    return [partial(divide_bits, where, near, blocks, *group) for group in blocks.groups(1 << 62, TOGETHER)]
