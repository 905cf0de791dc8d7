"""The stages of a plan are put in order, each after what it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ckpt_transport.planning.broadcast_trees import Link
from ckpt_transport.planning.candidates import Trees
from ckpt_transport.planning.values.manifest import Manifest
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Hop, Route, Stage, StageKind
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


def stages_of(
    manifest: Manifest,
    buckets: Sequence[Bucket],
    hops: Sequence[Hop],
    hops_of: Mapping[tuple[int, int], Sequence[int]],
    routes: Sequence[Route],
) -> tuple[Stage, ...]:
    """Make every bucket's stages, each after what it needs and after the last readers of the slot it overwrites."""
    stages: list[Stage] = []
    senders = [rank_mask(leg.sender for leg in hop.legs) for hop in hops]
    writers = [receiving_mask(hop, routes) for hop in hops]
    fill_readers: dict[tuple[int, int], int] = {}
    occupants: defaultdict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)

    def add(kind: StageKind, bucket: int, hop: int, after: Iterable[int]) -> int:
        stages.append(Stage(kind, bucket, hop, tuple(sorted(set(after)))))
        return len(stages) - 1

    for number, bucket in enumerate(buckets):
        owner = manifest.extents[bucket.extent].owner
        before: list[int] = []
        if bucket.fill_slot != IN_PLACE:
            previous = fill_readers.get((owner, bucket.fill_slot))
            before = [add(StageKind.FILL, number, -1, () if previous is None else (previous,))]
        tree = hops_of[owner, bucket.receiver_set]
        transfers: list[int] = []
        for hop in tree:
            freed = [stage for ranks, readers in occupants[bucket.slot] if ranks & writers[hop] for stage in readers]
            transfers.append(add(StageKind.TRANSFER, number, hop, [*before, *freed]))
            before = [transfers[-1]]
        apply = add(StageKind.APPLY, number, -1, transfers)
        if bucket.fill_slot != IN_PLACE:
            fill_readers[owner, bucket.fill_slot] = transfers[0]
        for hop in tree:
            onward = (stage for then, stage in zip(tree, transfers, strict=True) if senders[then] & writers[hop])
            occupy(occupants[bucket.slot], writers[hop], (apply, *onward))
    return tuple(stages)


def rank_mask(ranks: Iterable[int]) -> int:
    """A set of ranks as the bits of an integer, so that sets of hundreds of ranks compare in one step."""
    return sum(1 << rank for rank in set(ranks))


def receiving_mask(hop: Hop, routes: Sequence[Route]) -> int:
    """The ranks whose slots a hop writes to."""
    return rank_mask(rank for leg in hop.legs if not routes[leg.route].maps_memory for rank in leg.receivers)


def occupy(occupants: list[tuple[int, tuple[int, ...]]], ranks: int, readers: tuple[int, ...]) -> None:
    """Note that the same slot of all ``ranks`` now holds a bucket that the stages ``readers`` read."""
    occupants[:] = [(others & ~ranks, stages) for others, stages in occupants if others & ~ranks]
    if ranks:
        occupants.append((ranks, readers))
