"""The assignment decides which holder sends what, where several hold the same bytes.

The version is laid out in *units*: ranges of bytes that the same holders have, small beside a holder's fair share.
:func:`assign` gives every unit to one of its holders so that all of them end at about the same time:

1. the units that fewest hold come first, the larger before the smaller, each to the holder that would end first with it
   (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969, for machines of different speed);
2. while it helps, the holder that ends last hands a unit to another, which may hand some on in turn (an augmenting
   path, as in bipartite matching): what only a few hold pushes what many hold out of their way;
3. where units are so few that one more or less matters, all assignments are searched.

A test compares the result with the exact optimum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckpt_transport.errors import CheckpointError
from ckpt_transport.planning.values.alignment import ALIGNMENT, align_down, align_up
from ckpt_transport.planning.values.byte_ranges import ByteRangeSet
from ckpt_transport.planning.values.manifest import (
    Extent,
    Manifest,
    PlacedTensor,
    TensorRange,
    check_version,
    conversions_of,
    merge,
)

UNITS_PER_HOLDER = 24
"""So many units make up a fair share, so that one more or less is a few per cent."""
FEW_UNITS = 14
"""So many are searched for the best assignment."""
SEARCH_STEPS = 30_000


@dataclass(frozen=True, slots=True)
class Unit:
    """Bytes that one holder sends.

    Attributes:
        nbytes: its size.
        holders: ranks of those who have it, ascending.
    """

    nbytes: int
    holders: tuple[int, ...]


def assign(units: Sequence[Unit], rates: Mapping[int, float]) -> list[int]:
    """Choose a holder for every unit, so that the one that ends last ends early. Pure and deterministic.

    Args:
        units: what there is to send.
        rates: bytes per second at which each holder can send.
    """
    loads = dict.fromkeys(sorted(rates), 0.0)
    owners = [0] * len(units)
    order = sorted(range(len(units)), key=lambda n: (len(units[n].holders), -units[n].nbytes, n))
    for number in order:
        unit = units[number]
        owner = min(unit.holders, key=lambda rank: ((loads[rank] + unit.nbytes) / rates[rank], rank))
        owners[number] = owner
        loads[owner] += unit.nbytes
    _Exchange(units, rates, loads, owners).run()
    if len(units) <= FEW_UNITS:
        return _Search(units, rates, owners).best()
    return owners


class _Exchange:
    """Hands units on along chains of holders, as long as the last end gets earlier."""

    def __init__(
        self, units: Sequence[Unit], rates: Mapping[int, float], loads: dict[int, float], owners: list[int]
    ) -> None:
        self._units, self._rates, self._loads, self._owners = units, rates, loads, owners
        self._of: dict[int, list[int]] = {rank: [] for rank in rates}
        for number in sorted(range(len(units)), key=lambda n: (units[n].nbytes, n)):
            self._of[owners[number]].append(number)

    def run(self) -> None:
        for _ in range(4 * len(self._units)):
            worst = max(self._rates, key=lambda rank: (self._loads[rank] / self._rates[rank], -rank))
            limit = self._loads[worst] / self._rates[worst]
            if not self._relieve(worst, 0, limit, {worst}):
                return

    def _relieve(self, rank: int, extra: int, limit: float, seen: set[int]) -> bool:
        """Have ``rank``, which is given ``extra`` bytes, end before ``limit`` by handing units on."""
        for number in tuple(self._of[rank]):
            unit = self._units[number]
            if not unit.nbytes:
                continue
            enough = (self._loads[rank] + extra - unit.nbytes) / self._rates[rank] < limit
            others = [other for other in unit.holders if other not in seen]
            others.sort(key=lambda other: (self._loads[other] + unit.nbytes) / self._rates[other])
            if others and (self._loads[others[0]] + unit.nbytes) / self._rates[others[0]] < limit:
                self._move(number, others[0])
                if enough:
                    return True
            elif enough:
                for other in others:
                    if other in seen:
                        continue
                    seen.add(other)
                    if self._relieve(other, unit.nbytes, limit, seen):
                        self._move(number, other)
                        return True
        return False

    def _move(self, number: int, to: int) -> None:
        unit, owner = self._units[number], self._owners[number]
        self._of[owner].remove(number)
        self._of[to].append(number)
        self._of[to].sort(key=lambda n: (self._units[n].nbytes, n))
        self._loads[owner] -= unit.nbytes
        self._loads[to] += unit.nbytes
        self._owners[number] = to


class _Search:
    """Tries all assignments, larger units first, and skips those that cannot be better than the best so far."""

    def __init__(self, units: Sequence[Unit], rates: Mapping[int, float], start: Sequence[int]) -> None:
        self._units, self._rates = units, rates
        self._order = sorted(range(len(units)), key=lambda n: (-units[n].nbytes, n))
        self._loads = dict.fromkeys(rates, 0.0)
        self._owners = list(start)
        self._best = list(start)
        self._left = SEARCH_STEPS
        for number, owner in enumerate(start):
            self._loads[owner] += units[number].nbytes
        self._end = max((self._loads[rank] / rates[rank] for rank in rates), default=0.0)
        self._loads = dict.fromkeys(rates, 0.0)

    def best(self) -> list[int]:
        self._place(0)
        return self._best

    def _place(self, depth: int) -> None:
        if depth == len(self._order):
            self._end = max(self._loads[rank] / self._rates[rank] for rank in self._rates)
            self._best = list(self._owners)
            return
        self._left -= 1
        if self._left < 0:
            return
        number = self._order[depth]
        unit = self._units[number]
        for owner in sorted(unit.holders, key=lambda rank: (self._loads[rank] + unit.nbytes) / self._rates[rank]):
            if (self._loads[owner] + unit.nbytes) / self._rates[owner] >= self._end:
                break
            self._loads[owner] += unit.nbytes
            self._owners[number] = owner
            self._place(depth + 1)
            self._loads[owner] -= unit.nbytes


# -- of a version ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Copy:
    """A tensor where one holder has it; ``extent`` counts in the merged manifest."""

    owner: int
    extent: int
    offset: int
    digest: bytes


@dataclass(slots=True)
class _HeldRange:
    """A range of bytes that every holder has in one piece: entries of one unit."""

    entries: list[PlacedTensor]
    copies: list[_Copy]
    """Where the first byte is, at each holder."""
    nbytes: int


def spread(
    version: str, shards: Sequence[Manifest], rates: Mapping[int, float], present: Sequence[TensorRange], *, whole: bool
) -> Manifest:
    """Make the manifest of a version in which every range of bytes has one owner, although several may hold it.

    Args:
        version: its name.
        shards: what each source holds.
        rates: bytes per second at which each source can send.
        present: bytes that every sink has already, which are left out.
        whole: no tensor may be cut, because a sink's loader takes tensors whole.

    Raises:
        CheckpointError: two sources hold a tensor of one name that is not the same, or do not say what its bytes are;
            or a source holds another version.
    """
    names = [tensor.spec.name for shard in shards for tensor in shard.tensors]
    if not present and len(set(names)) == len(names):
        return merge(version, shards)
    extents, copies, known = _collect(version, shards)
    holders = {copy.owner for of_tensor in copies.values() for copy in of_tensor}
    nbytes = sum(tensor.nbytes for tensor in known.values()) - sum(held.nbytes for held in present)
    grain = max(align_up(nbytes // (UNITS_PER_HOLDER * max(len(holders), 1))), ALIGNMENT)
    done = ByteRangeSet((held.spec.name, held.start, held.nbytes) for held in present)
    ranges = list(_held_ranges(copies, known, grain, done, whole=whole))
    units = [Unit(each.nbytes, tuple(sorted(copy.owner for copy in each.copies))) for each in ranges]
    owners = assign(units, {rank: rates[rank] for rank in holders})
    tensors: list[PlacedTensor] = []
    for held, owner in zip(ranges, owners, strict=True):
        mine = next(copy for copy in held.copies if copy.owner == owner)
        first = held.entries[0].offset
        tensors += [
            PlacedTensor(entry.spec, mine.extent, mine.offset + entry.offset - first, entry.nbytes, entry.start)
            for entry in held.entries
        ]
    computed = conversions_of(shards)
    return Manifest(version, tuple(extents), tuple(tensors), tuple(present), conversions=computed)


def _collect(
    version: str, shards: Sequence[Manifest]
) -> tuple[list[Extent], dict[str, list[_Copy]], dict[str, PlacedTensor]]:
    """Collect all extents and the copies of each tensor; tensors come in the order of the first who holds them."""
    extents: list[Extent] = []
    copies: defaultdict[str, list[_Copy]] = defaultdict(list)
    known: dict[str, PlacedTensor] = {}
    for shard in shards:
        check_version(version, shard)
        base = len(extents)
        extents.extend(shard.extents)
        order = sorted(range(len(shard.tensors)), key=lambda n: (shard.tensors[n].extent, shard.tensors[n].offset))
        for number in order:
            tensor = shard.tensors[number]
            digest = shard.digests[number] if shard.digests else b""
            owner = shard.extents[tensor.extent].owner
            copy = _Copy(owner, tensor.extent + base, tensor.offset, digest)
            _check_same(known.setdefault(tensor.spec.name, tensor), tensor, copies[tensor.spec.name], copy)
            copies[tensor.spec.name].append(copy)
    return extents, copies, known


def _check_same(first: PlacedTensor, tensor: PlacedTensor, others: Sequence[_Copy], copy: _Copy) -> None:
    if not others:
        return
    other, name = others[0], tensor.spec.name
    who = f"by source ranks {other.owner} and {copy.owner}"
    if any(held.owner == copy.owner for held in others):
        raise CheckpointError(f"tensor '{name}' is held twice, by source ranks {copy.owner} and {copy.owner}")
    if first.spec != tensor.spec:
        raise CheckpointError(f"tensor '{name}' is held {who} and differs: {first.spec} and {tensor.spec}")
    if not other.digest or not copy.digest:
        raise CheckpointError(
            f"tensor '{name}' is held twice, {who}, and they do not both say what its bytes are; serve versions that "
            "several hold with 'ckpt-transport serve'"
        )
    if other.digest != copy.digest:
        raise CheckpointError(
            f"tensor '{name}' is held {who} with different bytes; they hold different checkpoints under one name"
        )


def _held_ranges(
    copies: Mapping[str, Sequence[_Copy]],
    known: Mapping[str, PlacedTensor],
    grain: int,
    present: ByteRangeSet,
    *,
    whole: bool,
) -> Iterator[_HeldRange]:
    current: _HeldRange | None = None
    for name, of_tensor in copies.items():
        tensor = known[name]
        for entry in _parts(tensor, of_tensor[0], grain, present, whole=whole):
            here = [_Copy(copy.owner, copy.extent, copy.offset + entry.start, copy.digest) for copy in of_tensor]
            if current is not None and _continues(current, entry, here, grain):
                current.entries.append(entry)
                current.nbytes += entry.nbytes
            else:
                if current is not None:
                    yield current
                current = _HeldRange([entry], here, entry.nbytes)
    if current is not None:
        yield current


def _parts(
    tensor: PlacedTensor, first: _Copy, grain: int, present: ByteRangeSet, *, whole: bool
) -> Iterator[PlacedTensor]:
    """Cut what is missing of a tensor into ranges of at most a grain, if it may be cut, as its first holder has it."""
    for low, high in present.missing(tensor.spec.name, 0, tensor.nbytes):
        if whole:
            low, high = 0, tensor.nbytes
        while True:
            end = high if whole or high - low <= grain else align_down(low + grain)
            yield PlacedTensor(tensor.spec, first.extent, first.offset + low, end - low, low)
            low = end
            if low >= high:
                break
        if whole:
            return


def _continues(held: _HeldRange, entry: PlacedTensor, copies: Sequence[_Copy], grain: int) -> bool:
    """Whether an entry lies right behind a range at everybody who holds either."""
    last = held.entries[-1]
    gap = entry.offset - (last.offset + last.nbytes)
    if held.nbytes + entry.nbytes > grain or not 0 <= gap < ALIGNMENT or len(copies) != len(held.copies):
        return False
    behind = entry.offset - held.entries[0].offset
    return all(
        (now.owner, now.extent, now.offset) == (then.owner, then.extent, then.offset + behind)
        for then, now in zip(held.copies, copies, strict=True)
    )
