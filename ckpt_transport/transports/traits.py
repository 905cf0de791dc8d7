"""Traits are what the cost model may know about a transport."""

from __future__ import annotations

import enum

import msgspec

from ckpt_transport.memory import ON_ONE_GPU, MemoryKind


class Reach(enum.StrEnum):
    """How far apart the ranks of a route may be."""

    DEVICE = "device"
    """All on one GPU."""
    PEERS = "peers"
    """Within a host, on GPUs that can read the memory of the sender's."""
    HOST = "host"
    NETWORK = "network"


class FanOut(enum.StrEnum):
    """What sending to n receivers costs, in times what one costs."""

    CONSTANT = "constant"
    TREE = "tree"
    """The logarithm of n + 1 to base 2."""
    LINEAR = "linear"


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What the cost model may know about a transport. Nothing else reads it.

    Attributes:
        reach: how far it goes.
        sends_from: memory kinds it can send from where they lie; a bucket in any other kind is first filled into a slot
            that the endpoint allocated.
        maps_memory: a receiver sees the sender's own memory, so it needs no slot and no byte moves.
        fan_out: how the cost grows with the number of receivers.
        bandwidth: bytes per second between one sender and one receiver, a conservative typical figure; between hosts
            see :meth:`Transport.expected_bandwidth`.
        latency: seconds one transfer costs whatever its size.
        one_rank_per_device: the members of a route must all be on different GPUs.
        at_once: so many transfers of a route a rank carries out at once, at most; 0 where nothing limits that.
    """

    reach: Reach
    sends_from: frozenset[MemoryKind]
    fan_out: FanOut = FanOut.LINEAR
    bandwidth: float
    latency: float
    maps_memory: bool = False
    one_rank_per_device: bool = False
    at_once: int = 0

    @property
    def on_device(self) -> bool:
        """Whether it moves memory of GPUs only, so that every member needs one."""
        return MemoryKind.CUDA in self.sends_from <= {MemoryKind.CUDA, *ON_ONE_GPU}
