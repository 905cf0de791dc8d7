"""Who needs what: a version cut into stretches, each with the sinks that need it.

::

    tensor        |---- q_proj ----|------ experts.0 ------|------ experts.1 ------|
    rank 1 needs   ------           -----------------------
    rank 2 needs         ----------                         -----------------------
    stretches     |--1--|----2-----|-----------1-----------|-----------2-----------|

Stretches with equal audiences travel together, along chains of their own, and reach nobody else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ckpt_transport.planning.values.manifest import Manifest, PlacedTensor
from ckpt_transport.planning.values.topology import EVERYTHING, Topology

Interval = tuple[int, int]
"""First byte, and the one behind the last."""


class Stretch(NamedTuple):
    """A run of bytes of one tensor.

    Attributes:
        tensor: index into the manifest's tensors.
        offset: where it starts in the placed tensor, in bytes.
        nbytes: its length.
        audience: index into the audiences.
    """

    tensor: int
    offset: int
    nbytes: int
    audience: int


AUDIENCES_PER_SINK = 2
"""So many at most, on average: each is a route from every owner, with connections and registrations of its own."""


@dataclass(frozen=True)
class Demand:
    """What has to be brought to whom.

    Attributes:
        audiences: sets of sinks, ascending each.
        stretches: what is to be moved, in the order of the manifest. What no sink needs is in none of them.
    """

    audiences: tuple[tuple[int, ...], ...]
    stretches: tuple[Stretch, ...]


def everything_to_all(manifest: Manifest, topology: Topology) -> Demand:
    """Every sink gets every byte."""
    stretches = (Stretch(number, 0, tensor.nbytes, 0) for number, tensor in enumerate(manifest.tensors))
    return Demand((topology.sinks,), tuple(stretches))


def to_each_its_own(manifest: Manifest, topology: Topology, run_bytes: int) -> Demand:
    """Every sink gets what its share names, and ``run_bytes`` at least. Tensors without bytes go to all."""
    return _Sorting(manifest, topology, run_bytes).demand()


class _Sorting:
    def __init__(self, manifest: Manifest, topology: Topology, run_bytes: int) -> None:
        self._manifest, self._topology, self._run_bytes = manifest, topology, run_bytes
        self._ranks: dict[int, list[int]] = {}
        for rank in topology.sinks:
            self._ranks.setdefault(topology.participants[rank].share, []).append(rank)
        self._wanted: defaultdict[str, dict[int, list[Interval]]] = defaultdict(dict)
        for share in sorted(self._ranks):
            for name, start, nbytes in () if share == EVERYTHING else topology.shares[share].runs:
                self._wanted[name].setdefault(share, []).append((start, start + nbytes))
        self._numbers: dict[tuple[int, ...], int] = {}
        self._all = tuple(sorted(self._ranks))
        self._most = AUDIENCES_PER_SINK * len(topology.sinks)

    def demand(self) -> Demand:
        stretches: list[Stretch] = []
        for number, tensor in enumerate(self._manifest.tensors):
            for low, high, takers in self._runs(tensor):
                audience = self._numbers.setdefault(takers, len(self._numbers))
                stretches.append(Stretch(number, low, high - low, audience))
        stretches = self._widened(stretches)
        audiences = (tuple(sorted(rank for share in takers for rank in self._ranks[share])) for takers in self._numbers)
        return Demand(tuple(audiences), tuple(stretches))

    def _widened(self, stretches: list[Stretch]) -> list[Stretch]:
        """Not too many audiences: what goes to those with the fewest bytes goes to all."""
        if len(self._numbers) <= self._most:
            return stretches
        nbytes: Counter[int] = Counter()
        for stretch in stretches:
            nbytes[stretch.audience] += stretch.nbytes
        kept = sorted(number for number, _ in nbytes.most_common(self._most - 1))
        takers = list(self._numbers)
        self._numbers = {takers[number]: place for place, number in enumerate(kept)}
        everybody = self._numbers.setdefault(self._all, len(self._numbers))
        places = {number: place for place, number in enumerate(kept)}
        return [stretch._replace(audience=places.get(stretch.audience, everybody)) for stretch in stretches]

    def _runs(self, tensor: PlacedTensor) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Runs of one tensor, and the shares that have them."""
        needs = {share: self._within(runs, tensor) for share, runs in self._wanted.get(tensor.spec.name, {}).items()}
        if EVERYTHING in self._ranks:
            needs[EVERYTHING] = [(0, tensor.nbytes)]
        edges = sorted({edge for intervals in needs.values() for interval in intervals for edge in interval})
        if not tensor.nbytes:
            yield 0, 0, self._all
            return
        start = 0
        last: tuple[int, ...] = ()
        for low, high in pairwise(edges):
            takers = tuple(
                sorted(share for share, runs in needs.items() if any(a <= low and high <= b for a, b in runs))
            )
            if takers != last:
                if last:
                    yield start, low, last
                start, last = low, takers
        if last:
            yield start, edges[-1], last

    def _within(self, runs: Sequence[Interval], tensor: PlacedTensor) -> Sequence[Interval]:
        """What is needed of a placed tensor, of whose tensor these runs are."""
        first, end = tensor.start, tensor.start + tensor.nbytes
        inside = [(max(low, first) - first, min(high, end) - first) for low, high in runs if low < end and first < high]
        lengths = [high - low for low, high in inside] + [high - low for (_, low), (high, _) in pairwise(inside)]
        if inside and (self._topology.whole_tensors or min(lengths) < self._run_bytes):
            return [(0, tensor.nbytes)]
        return inside
