"""Buckets are as long as what each costs beside its bytes, and the memory that they take, make sensible.

What is read in place takes no slot. Three kinds of buckets are longer than others, where GPUs have memory for them:

* What passes from GPU to GPU through slots: such a link brings 64 MiB sooner than the host can enqueue and account for
  them. So there are fewer of them, as many as keep the stages busy, and each takes longer than the host needs for it.
* What comes to GPUs whose engines run forward passes meanwhile. For each bucket a sink's threads ask some twenty times
  for the interpreter that the passes need too, and each time both lose more than what they do with it.
* What several sources fill slots on GPUs with, each over its own link to the host: a sink gets so many buckets in the
  time of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ckpt_transport.memory import ON_ONE_GPU, MemoryKind
from ckpt_transport.memory.double_buffer import LARGEST
from ckpt_transport.planning.broadcast_trees import BroadcastTree
from ckpt_transport.planning.values.alignment import align_down, align_up
from ckpt_transport.planning.values.manifest import Extent
from ckpt_transport.planning.values.settings import Settings
from ckpt_transport.planning.values.topology import Topology
from ckpt_transport.transports.interface import Traits

RINGS_ON_GPUS = 8
"""A bucket in a GPU's memory, which is read in place, is as long as so many rings. At the default that is 2 GiB, so
that what each bucket costs beside its bytes is little."""
LONGEST = 8
"""At most so many times as long as ``bucket_bytes``: 512 MiB at the default."""
ENOUGH = 32
"""Each sink receives at least so many: a pipeline fills and drains in the time of two or three."""
SPARED = 4
"""Longer buckets leave memory for so many rings of them: slots stay allocated between updates."""

ON_GPUS = frozenset({MemoryKind.CUDA, MemoryKind.SCATTERED, *ON_ONE_GPU})


def in_place(extents: Sequence[Extent], topology: Topology, settings: Settings, nbytes: int) -> int:
    """The size to aim at where everybody reads in place: a ring, or several. Where buckets are brought it is a slot;
    beside passes, at most one of the two buffers that they pass through.

    Args:
        extents: where they lie.
        topology, settings: of the plan.
        nbytes: what a sink receives, of the one that receives least.
    """
    if are_brought(extents, topology):
        usual = align_up(settings.bucket_bytes)
        if not settings.beside_passes:
            return usual
        room = min(topology.participants[rank].budget for rank in topology.sinks)
        return max(usual, min(longer(settings, LONGEST, nbytes, room), LARGEST))
    rings = RINGS_ON_GPUS if _exported(extents) else 1
    return align_up(settings.bucket_bytes) * settings.ring_depth * rings


def are_brought(extents: Sequence[Extent], topology: Topology) -> bool:
    """Whether a sink brings what it reads in host memory to its GPU, two buckets at a time."""
    on_gpus = topology.with_devices
    return bool(on_gpus) and not _exported(extents) and not on_gpus.isdisjoint(topology.sinks)


def _exported(extents: Sequence[Extent]) -> bool:
    return all(extent.kind in ON_ONE_GPU for extent in extents)


def through_slots(settings: Settings, usual: int, *, receives: bool) -> int:
    """The size to aim at where buckets pass through slots, whatever memory there is.

    Slots that are only filled are so before forward passes are held: no need to cut a small version finer.

    Args:
        settings: what the user chose.
        usual: :func:`~ckpt_transport.planning.values.settings.bucket_bytes` of the version.
        receives: some rank receives into slots.
    """
    return usual if receives else align_up(settings.bucket_bytes)


def expected(
    extent: Extent,
    tree: BroadcastTree,
    nbytes: int,
    topology: Topology,
    traits: Mapping[str, Traits],
    settings: Settings,
    usual: int,
) -> int:
    """About how long buckets will be that go along one tree, before slots are given out.

    Args:
        extent: where they come from.
        tree: where they go.
        nbytes: how much does.
        topology, traits, settings: of the plan.
        usual: as for :func:`through_slots`.
    """
    receives = any(not traits[link.transport].maps_memory for hop in tree.hops for link in hop)
    if not receives and not tree.fills(extent, traits):
        return in_place([extent], topology, settings, nbytes)
    size = through_slots(settings, usual, receives=receives)
    times = times_longer([extent], [tree], topology, traits, settings)
    if times == 1:
        return size
    return max(size, longer(settings, times, nbytes, room_everywhere({(extent.owner, 0): tree}, topology)))


def times_longer(
    extents: Iterable[Extent],
    trees: Iterable[BroadcastTree],
    topology: Topology,
    traits: Mapping[str, Traits],
    settings: Settings,
) -> int:
    """How many times ``bucket_bytes`` a bucket may be long; 1 unless all slots that bytes pass through lie on GPUs."""
    links = [link for tree in trees for hop in tree.hops for link in hop]
    if not all(MemoryKind.CUDA in traits[link.transport].sends_from for link in links):
        return 1
    if not all(topology.with_devices.issuperset(link.ranks) for link in links):
        return 1
    if settings.beside_passes or all(_on_gpu(extent, topology) for extent in extents):
        return LONGEST
    return min(len(topology.sources), LONGEST)


def _on_gpu(extent: Extent, topology: Topology) -> bool:
    return extent.kind in ON_GPUS and extent.owner in topology.with_devices


def room_everywhere(trees: Mapping[tuple[int, int], BroadcastTree], topology: Topology) -> int:
    """The bytes that a ring may take on any GPU on the way: sources may fill slots on an engine's, several on the same.

    Args:
        trees: by owner and receiver set.
        topology: who has how much memory.
    """
    filled = {(owner, link.device) for (owner, _), tree in trees.items() for link in tree.hops[0] if link.device}
    owners = Counter(device for _, device in filled)
    ranks = {rank for tree in trees.values() for rank in tree.ranks}
    return min(topology.participants[rank].budget for rank in ranks) // max(owners.values(), default=1)


def longer(settings: Settings, times: int, least: int, room: int) -> int:
    """The size to aim at; 0 where memory, or a small version, allows none.

    Args:
        settings: what the user chose.
        times: see :func:`times_longer`.
        least: bytes that a sink receives, of the one that receives fewest.
        room: bytes that every ring has room for, wherever it lies.
    """
    return align_down(min(settings.bucket_bytes * times, least // ENOUGH, room // (SPARED * settings.ring_depth)))
