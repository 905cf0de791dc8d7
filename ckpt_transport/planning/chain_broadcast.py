"""In a chain broadcast each sink passes a bucket on to the next one as soon as it has it.

::

    owner ──► sink a ──► sink b ──► sink c          bucket 2 leaves the owner while bucket 1 leaves a and bucket 0 b

Nobody sends a bucket more than once, so the owner's link is not shared out among n sinks: a chain takes as long as one
sink, and n - 1 buckets more. With several owners, the chain of each begins at another sink, so that the links of all
sinks carry about as much.

Where sinks share a host and a second transport stays within one, the chain goes over one sink of each host, its *head*,
and from there to the others of that host: ``read-chain+window``.

More than 256 stops are several lines, as few and as equal as can be, which carry a bucket at the same time. The owner
sends it to the first stop of each. Where there are as many owners as lines, no owner sends more than a sink passes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise, zip_longest
from typing import TypeVar

from ckpt_transport.planning.broadcast_trees import ON_GPUS, BroadcastTree, Link, Rejected, checked
from ckpt_transport.planning.values.topology import Topology
from ckpt_transport.transports.interface import FanOut, Reach, Traits

Item = TypeVar("Item")
SUFFIX = "-chain"
MOST_HOPS = 256
"""The last sink of a line waits for as many buckets as the line is long. Beyond this, there are several lines."""


def transports_of(tree: str) -> tuple[str, ...]:
    """The transports in the name of a tree: ``read`` and ``window`` for ``read-chain+window``."""
    return tuple(name.removesuffix(SUFFIX) for name in tree.split("+"))


def chain_broadcasts(
    owner: int,
    owners: Sequence[int],
    sinks: Sequence[int],
    topology: Topology,
    traits: Mapping[str, Traits],
    asked: str,
) -> Iterator[BroadcastTree | Rejected]:
    """Yield every chain broadcast, such as ``read-chain`` and ``read-chain+window``.

    A chain is worth it for a transport that gets slower with every receiver. One whose receivers pass on among
    themselves forms a chain only when it is asked for.

    Args:
        owner: where it begins.
        owners: all owners; each has a chain of its own.
        sinks: where it goes.
        topology, traits: what there is.
        asked: the name of the tree that was asked for.
    """
    if len(sinks) < 2:
        return
    for outer in sorted(traits):
        if traits[outer].maps_memory or traits[outer].reach in ON_GPUS:
            continue
        if traits[outer].fan_out is not FanOut.LINEAR and outer not in transports_of(asked):
            continue
        heads = [[rank] for rank in _turned(sinks, owner, owners)]
        yield _chain_broadcast(f"{outer}{SUFFIX}", outer, "", heads, (), owner, topology, traits)
        for inner in sorted(traits):
            if outer != inner and traits[outer].reach is Reach.NETWORK and traits[inner].reach is Reach.HOST:
                hosts: dict[str, list[int]] = {}
                for rank in sinks:
                    hosts.setdefault(topology.host(rank), []).append(rank)
                near = tuple(hosts.pop(topology.host(owner), ()))
                stops = [hosts[host] for host in _turned(list(hosts), owner, owners)]
                yield _chain_broadcast(f"{outer}{SUFFIX}+{inner}", outer, inner, stops, near, owner, topology, traits)


def _turned(items: Sequence[Item], owner: int, owners: Sequence[int]) -> list[Item]:
    """``items`` in their order, beginning elsewhere for every owner."""
    first = owners.index(owner) * len(items) // len(owners)
    return [*items[first:], *items[:first]]


def _chain_broadcast(
    name: str,
    outer: str,
    inner: str,
    stops: list[list[int]],
    near: tuple[int, ...],
    owner: int,
    topology: Topology,
    traits: Mapping[str, Traits],
) -> BroadcastTree | Rejected:
    """From the owner to the first of each stop in turn, over ``outer``; from there to its others, over ``inner``."""
    if len(stops) < 2:
        return Rejected(name, "there is one place to go, and nobody to pass on to")
    if inner and not near and all(len(stop) == 1 for stop in stops):
        return Rejected(name, "every host has one sink, so there is nothing to pass on within it")
    if traits[outer].reach is not Reach.NETWORK:
        far = [rank for stop in stops for rank in stop if topology.host(rank) != topology.host(owner)]
        if far:
            return Rejected(name, f"{outer} stays within a host, and sinks {far[:4]} are on other hosts than {owner}")
    lines = [_line(outer, inner, owner, part) for part in _parts(stops)]
    if near:
        lines.append([[Link(inner, owner, near)]])
    together = zip_longest(*lines, fillvalue=[])
    return checked(name, tuple(tuple(chain.from_iterable(links)) for links in together), topology, traits)


def _parts(stops: list[list[int]]) -> Iterator[list[list[int]]]:
    """As few parts as have each no more stops than a line may, and all about as many."""
    count = -(-len(stops) // MOST_HOPS)
    edges = [number * len(stops) // count for number in range(count + 1)]
    return (stops[start:end] for start, end in pairwise(edges))


def _line(outer: str, inner: str, owner: int, stops: list[list[int]]) -> list[list[Link]]:
    """The links of each hop of one line: to the next head, and from a head to the others of its host."""
    hops: list[list[Link]] = []
    sender, beside = owner, list[int]()
    for head, *others in stops:
        hops.append([Link(outer, sender, (head,)), *([Link(inner, sender, tuple(beside))] if beside else [])])
        sender, beside = head, others
    if beside:
        hops.append([Link(inner, sender, tuple(beside))])
    return hops
