"""The stages of a plan are put in order, each after what it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ckpt_transport.planning.broadcast_trees import Link
from ckpt_transport.planning.candidates import Trees
from ckpt_transport.planning.values.manifest import Manifest
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Hop, Route
from ckpt_transport.planning.values.stages import OWN, Block, Pattern, PatternStage, StageKind, Stages
from ckpt_transport.planning.values.topology import Topology
from ckpt_transport.transports.interface import Traits


def routes_of(
    trees: Trees, topology: Topology, traits: Mapping[str, Traits]
) -> tuple[tuple[Route, ...], tuple[Hop, ...], dict[tuple[int, int], tuple[int, ...]]]:
    """Number the routes and hops of trees.

    Returns: routes, hops, and the numbers of the hops from each owner to each receiver set.
    """
    routes: list[Route] = []
    hops: list[Hop] = []
    hops_of: dict[tuple[int, int], tuple[int, ...]] = {}

    def leg_of(link: Link) -> int:
        members = [topology.participants[rank] for rank in link.ranks]
        devices = [member.device for member in members]
        if link.device:
            devices[0] = link.device
        routes.append(Route(link.transport, link.ranks, traits[link.transport].maps_memory, tuple(devices)))
        return len(routes) - 1

    for ends, tree in sorted(trees.items(), key=lambda item: item[0]):
        first = len(hops)
        hops.extend(Hop(tuple(link.leg(leg_of(link)) for link in links)) for links in tree.hops)
        hops_of[ends] = tuple(range(first, len(hops)))
    return tuple(routes), tuple(hops), hops_of


_WayKey = tuple[int, int, bool]
"""The owner and the receiver set of a bucket, and whether it is filled."""


class _Way(NamedTuple):
    """What a bucket passes on its way along the hops of one tree, and what it leaves behind there.

    Attributes:
        hops: their numbers, in turn.
        filled: whether the bucket is filled into a slot of its owner's first.
        writes: for each hop, the ranks whose slots it writes to.
        readers: for each of these ranks, the positions of the stages that read the slot.
        written: all of these ranks, as the bits of an integer.
    """

    hops: tuple[int, ...]
    filled: bool
    writes: tuple[tuple[int, ...], ...]
    readers: Mapping[int, tuple[int, ...]]
    written: int


class _Earlier(NamedTuple):
    """An earlier bucket in a slot: which one, by which way it came there, and the ranks that have it there still."""

    bucket: int
    way: _WayKey
    ranks: int


def stages_of(
    manifest: Manifest,
    buckets: Sequence[Bucket],
    hops: Sequence[Hop],
    hops_of: Mapping[tuple[int, int], Sequence[int]],
    routes: Sequence[Route],
) -> Stages:
    """Make every bucket's stages, each after what it needs and after the last readers of the slot it overwrites.

    What the stages of a bucket wait for follows from its way and from those of the buckets that were in its slots
    before; so buckets for which these are alike share a pattern.
    """
    ways: dict[_WayKey, _Way] = {}
    fill_readers: dict[tuple[int, int], int] = {}
    occupants: defaultdict[int, list[_Earlier]] = defaultdict(list)
    numbers: dict[tuple[object, ...], int] = {}
    patterns: list[Pattern] = []
    blocks: list[Block] = []
    for number, bucket in enumerate(buckets):
        owner = manifest.extents[bucket.extent].owner
        key = owner, bucket.receiver_set, bucket.fill_slot != IN_PLACE
        if key not in ways:
            ways[key] = _way(hops_of[owner, bucket.receiver_set], hops, routes, filled=key[2])
        way = ways[key]
        sent = fill_readers.get((owner, bucket.fill_slot)) if way.filled else None
        before = [each for each in occupants[bucket.slot] if each.ranks & way.written]
        meant = list(dict.fromkeys([*(each.bucket for each in before), *([] if sent is None else [sent])]))
        sent_as = None if sent is None else meant.index(sent) + 1
        alike = key, sent_as, *(each.way for each in before)
        if alike not in numbers:
            numbers[alike] = len(patterns)
            patterns.append(_pattern(way, [ways[each.way] for each in before], sent_as))
        if way.filled:
            fill_readers[owner, bucket.fill_slot] = number
        blocks.append(Block(numbers[alike], number, tuple(number - other for other in meant)))
        if way.written:
            others = _overwritten(occupants[bucket.slot], way.written)
            occupants[bucket.slot] = [_Earlier(number, key, way.written), *others]
    return Stages(tuple(patterns), tuple(blocks))


def _way(tree: Sequence[int], hops: Sequence[Hop], routes: Sequence[Route], *, filled: bool) -> _Way:
    first = 1 if filled else 0
    apply = first + len(tree)
    sends: defaultdict[int, list[int]] = defaultdict(list)
    writes = []
    for position, hop in enumerate(tree, first):
        for leg in hops[hop].legs:
            sends[leg.sender].append(position)
        legs = (leg for leg in hops[hop].legs if not routes[leg.route].maps_memory)
        writes.append(tuple(sorted({rank for leg in legs for rank in leg.receivers})))
    readers = {rank: (*sorted(set(sends[rank])), apply) for ranks in writes for rank in ranks}
    return _Way(tuple(tree), filled, tuple(writes), readers, rank_mask(readers))


def _pattern(way: _Way, before: Sequence[_Way], sent_as: int | None) -> Pattern:
    """The stages of a bucket.

    Args:
        way: its own.
        before: the ways of the earlier buckets in its slot, the last one first.
        sent_as: which earlier bucket its fill overwrites, and which must have been sent; None for none.
    """
    stages: list[PatternStage] = []
    if way.filled:
        stages.append(PatternStage(StageKind.FILL, -1, () if sent_as is None else ((sent_as, 1),)))
    for hop, writes in zip(way.hops, way.writes, strict=True):
        after = {(OWN, len(stages) - 1)} if stages else set()
        for rank in writes:
            for which, earlier in enumerate(before, 1):
                if rank in earlier.readers:
                    after.update((which, position) for position in earlier.readers[rank])
                    break
        stages.append(PatternStage(StageKind.TRANSFER, hop, _ordered(after)))
    own = {(OWN, position) for position, stage in enumerate(stages) if stage.kind is StageKind.TRANSFER}
    stages.append(PatternStage(StageKind.APPLY, -1, _ordered(own)))
    return tuple(stages)


def _ordered(after: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """In the order of the stages that are meant: earlier ones first, of which the last one has the lowest number."""
    return tuple(sorted(after, key=lambda place: (place[0] == OWN, -place[0], place[1])))


def _overwritten(occupants: Iterable[_Earlier], ranks: int) -> Iterator[_Earlier]:
    """What is left of ``occupants`` when the slots of these ranks are written to."""
    for each in occupants:
        if not each.ranks & ranks:
            yield each
        elif left := each.ranks & ~ranks:
            yield each._replace(ranks=left)


def rank_mask(ranks: Iterable[int]) -> int:
    """A set of ranks as the bits of an integer, so that sets of thousands of ranks compare in one step."""
    return sum(1 << rank for rank in set(ranks))
