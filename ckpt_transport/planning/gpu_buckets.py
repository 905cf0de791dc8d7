"""Buckets that pass from GPU to GPU through slots are longer than others, where there is memory for them.

A link between GPUs brings a bucket of 64 MiB sooner than the host can enqueue and account for it. So there are fewer of
them, as many as keep the stages busy, and each takes longer than the host needs for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning.broadcast_trees import BroadcastTree
from ckpt_transport.planning.values.alignment import align_down
from ckpt_transport.planning.values.manifest import Extent
from ckpt_transport.planning.values.settings import Settings
from ckpt_transport.planning.values.topology import Topology
from ckpt_transport.transports.interface import Traits

LONGER = 8
"""At most so many times as long as ``bucket_bytes``: 512 MiB at the default."""
ENOUGH = 32
"""Each sink receives at least so many: a pipeline fills and drains in the time of two or three."""
SPARED = 4
"""Longer buckets leave memory for so many rings of them: slots stay allocated between updates."""

ON_GPUS = frozenset({MemoryKind.CUDA, MemoryKind.SCATTERED, MemoryKind.EXPORTED})


def stays_on_gpus(
    extents: Iterable[Extent], trees: Iterable[BroadcastTree], topology: Topology, traits: Mapping[str, Traits]
) -> bool:
    """Whether bytes lie on GPUs, and all slots that they pass through do, too."""
    links = [link for tree in trees for hop in tree.hops for link in hop]
    return (
        all(extent.kind in ON_GPUS and extent.owner in topology.with_devices for extent in extents)
        and all(MemoryKind.CUDA in traits[link.transport].sends_from for link in links)
        and all(topology.with_devices.issuperset(link.ranks) for link in links)
    )


def longer(settings: Settings, least: int, room: int) -> int:
    """The size to aim at; 0 where memory, or a small version, allows none.

    Args:
        settings: what the user chose.
        least: bytes that a sink receives, of the one that receives fewest.
        room: bytes that every ring has room for.
    """
    return align_down(min(settings.bucket_bytes * LONGER, least // ENOUGH, room // (SPARED * settings.ring_depth)))
