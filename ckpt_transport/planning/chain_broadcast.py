"""In a chain broadcast each sink passes a bucket on to the next one as soon as it has it.

::

    owner ──► sink a ──► sink b ──► sink c          bucket 2 leaves the owner while bucket 1 leaves a and bucket 0 b

Nobody sends a bucket more than once, so the owner's link is not shared out among n sinks: a chain takes as long as one
sink, and n - 1 buckets more. With several owners, the chain of each begins at another sink, so that the links of all
sinks carry about as much.

Where sinks share a host and a second transport stays within one, the chain goes over one sink of each host, its *head*,
and from there to the others of that host: ``read-chain+window``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from ckpt_transport.planning.broadcast_trees import ON_GPUS, BroadcastTree, Link, Rejected, checked
from ckpt_transport.planning.values.topology import Topology
from ckpt_transport.transports.interface import FanOut, Reach, Traits

Item = TypeVar("Item")
SUFFIX = "-chain"
MOST_HOPS = 256
"""A longer chain takes long to plan and prove, and its last sink waits for that many buckets."""


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
    if len(stops) > MOST_HOPS:
        return Rejected(name, f"a chain of {len(stops)} is longer than {MOST_HOPS}")
    if inner and not near and all(len(stop) == 1 for stop in stops):
        return Rejected(name, "every host has one sink, so there is nothing to pass on within it")
    if traits[outer].reach is not Reach.NETWORK:
        far = [rank for stop in stops for rank in stop if topology.host(rank) != topology.host(owner)]
        if far:
            return Rejected(name, f"{outer} stays within a host, and sinks {far[:4]} are on other hosts than {owner}")
    hops: list[tuple[Link, ...]] = []
    sender, beside = owner, near
    for head, *others in stops:
        links = [Link(outer, sender, (head,))]
        if beside:
            links.append(Link(inner, sender, beside))
        hops.append(tuple(links))
        sender, beside = head, tuple(others)
    if beside:
        hops.append((Link(inner, sender, beside),))
    return checked(name, tuple(hops), topology, traits)
