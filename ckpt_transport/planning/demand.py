"""The demand says who needs what: it cuts a version into ranges of bytes, each with the sinks that need it.

::

    tensor        |---- q_proj ----|------ experts.0 ------|------ experts.1 ------|
    rank 1 needs   ------           -----------------------
    rank 2 needs         ----------                         -----------------------
    ranges        |--1--|----2-----|-----------1-----------|-----------2-----------|

Ranges with equal receiver sets travel together, along trees of their own, and reach nobody else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ckpt_transport.planning.values.byte_ranges import ByteRange
from ckpt_transport.planning.values.manifest import Manifest, PlacedTensor
from ckpt_transport.planning.values.topology import EVERYTHING, Topology


class DemandedRange(NamedTuple):
    """A range of bytes of one tensor that the same sinks need.

    Attributes:
        tensor: index into the manifest's tensors.
        offset: where it starts in the placed tensor, in bytes.
        nbytes: its length.
        receiver_set: index into the receiver sets.
    """

    tensor: int
    offset: int
    nbytes: int
    receiver_set: int


RECEIVER_SETS_PER_SINK = 2
"""So many at most, on average: each is a route from every owner, with connections and registrations of its own."""


@dataclass(frozen=True)
class Demand:
    """Ranges of bytes, each with the receivers that it must reach.

    Attributes:
        receiver_sets: sets of sinks, ascending each.
        ranges: what is to be moved, in the order of the manifest. What no sink needs is in none of them.
    """

    receiver_sets: tuple[tuple[int, ...], ...]
    ranges: tuple[DemandedRange, ...]


def broadcast(manifest: Manifest, topology: Topology) -> Demand:
    """The demand of sinks that all get every byte."""
    ranges = (DemandedRange(number, 0, tensor.nbytes, 0) for number, tensor in enumerate(manifest.tensors))
    return Demand((topology.sinks,), tuple(ranges))


def scatter(manifest: Manifest, topology: Topology, range_bytes: int) -> Demand:
    """The demand of sinks that get what their shares name, in ranges of ``range_bytes`` at least.

    Tensors without bytes go to all.
    """
    return _Sorting(manifest, topology, range_bytes).demand()


class _Sorting:
    def __init__(self, manifest: Manifest, topology: Topology, range_bytes: int) -> None:
        self._manifest, self._topology, self._range_bytes = manifest, topology, range_bytes
        self._ranks: dict[int, list[int]] = {}
        for rank in topology.sinks:
            self._ranks.setdefault(topology.participants[rank].share, []).append(rank)
        self._wanted: defaultdict[str, dict[int, list[ByteRange]]] = defaultdict(dict)
        for share in sorted(self._ranks):
            for name, start, nbytes in () if share == EVERYTHING else topology.shares[share].ranges:
                self._wanted[name].setdefault(share, []).append(ByteRange(start, start + nbytes))
        self._numbers: dict[tuple[int, ...], int] = {}
        self._all = tuple(sorted(self._ranks))
        self._most = RECEIVER_SETS_PER_SINK * len(topology.sinks)

    def demand(self) -> Demand:
        ranges: list[DemandedRange] = []
        alike: dict[object, Sequence[tuple[int, int, tuple[int, ...]]]] = {}
        for number, tensor in enumerate(self._manifest.tensors):
            wanted = self._wanted.get(tensor.spec.name, {})
            key = tensor.start, tensor.nbytes, *((share, *ranges) for share, ranges in wanted.items())
            if key not in alike:
                alike[key] = tuple(self._ranges(tensor, wanted))
            for low, high, takers in alike[key]:
                receiver_set = self._numbers.setdefault(takers, len(self._numbers))
                ranges.append(DemandedRange(number, low, high - low, receiver_set))
        ranges = self._widened(ranges)
        receiver_sets = (
            tuple(sorted(rank for share in takers for rank in self._ranks[share])) for takers in self._numbers
        )
        return Demand(tuple(receiver_sets), tuple(ranges))

    def _widened(self, ranges: list[DemandedRange]) -> list[DemandedRange]:
        """Not too many receiver sets: what goes to those with the fewest bytes goes to all."""
        if len(self._numbers) <= self._most:
            return ranges
        nbytes: Counter[int] = Counter()
        for demanded in ranges:
            nbytes[demanded.receiver_set] += demanded.nbytes
        kept = sorted(number for number, _ in nbytes.most_common(self._most - 1))
        takers = list(self._numbers)
        self._numbers = {takers[number]: place for place, number in enumerate(kept)}
        everybody = self._numbers.setdefault(self._all, len(self._numbers))
        places = {number: place for place, number in enumerate(kept)}
        return [demanded._replace(receiver_set=places.get(demanded.receiver_set, everybody)) for demanded in ranges]

    def _ranges(
        self, tensor: PlacedTensor, wanted: Mapping[int, Sequence[ByteRange]]
    ) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """First byte and end of ranges of one tensor, and the shares that have them; ``wanted`` is by share."""
        needs = {share: self._within(ranges, tensor) for share, ranges in wanted.items()}
        if EVERYTHING in self._ranks:
            needs[EVERYTHING] = [ByteRange(0, tensor.nbytes)]
        edges = sorted({edge for ranges in needs.values() for each in ranges for edge in each})
        if not tensor.nbytes:
            yield 0, 0, self._all
            return
        start = 0
        last: tuple[int, ...] = ()
        for low, high in pairwise(edges):
            takers = tuple(
                sorted(share for share, ranges in needs.items() if any(a <= low and high <= b for a, b in ranges))
            )
            if takers != last:
                if last:
                    yield start, low, last
                start, last = low, takers
        if last:
            yield start, edges[-1], last

    def _within(self, ranges: Sequence[ByteRange], tensor: PlacedTensor) -> Sequence[ByteRange]:
        """What is needed of a placed tensor, in whose own bytes; ``ranges`` are of the whole tensor."""
        first, end = tensor.start, tensor.start + tensor.nbytes
        inside = [
            ByteRange(max(low, first) - first, min(high, end) - first)
            for low, high in ranges
            if low < end and first < high
        ]
        lengths = [high - low for low, high in inside] + [high - low for (_, low), (high, _) in pairwise(inside)]
        if inside and (self._topology.whole_tensors or min(lengths) < self._range_bytes):
            return [ByteRange(0, tensor.nbytes)]
        return inside
