"""The schedule of checkpoint-engine, in the same clusters: bring to a GPU, broadcast, reload, in two stages.

As its version 0.4.2 does it bucket by bucket. In a round every rank brings one bucket of its own into a buffer of its
GPU: from host memory, or in an update by P2P from the memory of its owner, over the network. Then the ranks broadcast
theirs, one after the other. A bucket is broadcast while engines reload the one before, and a barrier ends both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ckpt_transport.planning import TensorSpec
from ckpt_transport.simulator.events import Activity, Clock, RankThread
from ckpt_transport.simulator.run import Simulated, busiest
from ckpt_transport.simulator.wires import Location, Wires
from ckpt_transport.simulator.world import SimulatedWorld

NCCL = "nccl"


@dataclass(frozen=True, slots=True)
class PackedBucket:
    """Whole tensors that move together: how many, and how many bytes."""

    tensors: int
    nbytes: int


def packed(specs: Sequence[TensorSpec], ranks: int, bucket_bytes: int) -> list[list[PackedBucket]]:
    """The buckets that each rank brings: of tensors that are next to each other, of about as many bytes as others."""
    total, done = sum(spec.nbytes for spec in specs), 0
    found: list[list[PackedBucket]] = [[] for _ in range(ranks)]
    for spec in specs:
        own = found[min(done * ranks // total, ranks - 1)]
        done += spec.nbytes
        if own and own[-1].nbytes + spec.nbytes <= bucket_bytes:
            own[-1] = PackedBucket(own[-1].tensors + 1, own[-1].nbytes + spec.nbytes)
        else:
            own.append(PackedBucket(1, spec.nbytes))
    return found


def checkpoint_engine(
    specs: Sequence[TensorSpec],
    world: SimulatedWorld,
    bucket_bytes: int,
    tensor_parallel: int,
    *,
    receivers: int = 0,
    piece: float,
) -> Simulated:
    """Run checkpoint-engine's update.

    Args:
        specs: of the version.
        world: with a sink on each GPU.
        bucket_bytes: the size of its buffers.
        tensor_parallel: ranks of an engine; each copies its part out of every bucket.
        receivers: the first so many ranks are updated by P2P; 0 for a broadcast to all.
        piece: seconds that an engine's loader needs for each tensor.
    """
    began = time.perf_counter()
    wires, clock = Wires(world), Clock()
    ranks = world.topology.sinks[: receivers or None]
    schedule = _Rounds(world, wires, ranks, tensor_parallel, piece, by_network=bool(receivers))
    rounds = zip_longest(*packed(specs, len(ranks), bucket_bytes))
    activities = list(schedule.activities(rounds))
    clock.run(activities)
    seconds = max(activity.ended for activity in activities)
    applies = sum(1 for activity in activities if activity.thread is not None)
    resources = busiest(schedule.threads.values(), wires)
    took = time.perf_counter() - began
    return Simulated(seconds, True, applies, applies, clock.events, took, tuple(resources), {})


class _Rounds:
    def __init__(
        self,
        world: SimulatedWorld,
        wires: Wires,
        ranks: Sequence[int],
        tensor_parallel: int,
        piece: float,
        *,
        by_network: bool,
    ) -> None:
        self._world, self._wires, self._ranks, self._piece = world, wires, ranks, piece
        self._part, self._by_network = 1 / tensor_parallel, by_network
        self.threads = {rank: RankThread(f"loader of rank {rank}") for rank in ranks}

    def activities(self, rounds: Iterator[tuple[PackedBucket | None, ...]]) -> Iterator[Activity]:
        """Make what happens, each after what it waits for."""
        traits = self._world.traits[NCCL]
        barrier: Activity | None = None
        reloads: list[Activity] = []
        for buckets in rounds:
            brought = [self._bring(rank, bucket) for rank, bucket in zip(self._ranks, buckets, strict=True) if bucket]
            for each in brought:
                if barrier is not None:
                    each.after(barrier)
                yield each
            first = True
            for rank, bucket in zip(self._ranks, buckets, strict=True):
                if bucket is None:
                    continue
                path = self._wires.pipelined(traits, (rank, *(other for other in self._ranks if other != rank)))
                sent = Activity(tuple(self._ranks), self._world.cluster.costs.network, bucket.nbytes, path)
                if barrier is not None:
                    sent.after(barrier)
                for each in brought if first else ():
                    sent.after(each)
                first = False
                barrier = Activity(tuple(self._ranks), self._world.cluster.costs.bucket)
                for each in (sent, *reloads):
                    barrier.after(each)
                yield sent
                yield barrier
                reloads = [self._reload(rank, bucket) for rank in self._ranks]
                for each in reloads:
                    each.after(barrier)
                    yield each

    def _bring(self, rank: int, bucket: PackedBucket) -> Activity:
        home = self._wires.home(rank)
        path = self._wires.arriving(rank) if self._by_network else self._wires.copied(Location(home.host), home)
        return Activity((rank,), 0.0, bucket.nbytes, path)

    def _reload(self, rank: int, bucket: PackedBucket) -> Activity:
        home = self._wires.home(rank)
        path = self._wires.copied(home, home, self._part)
        seconds = self._piece * bucket.tensors
        return Activity((rank,), seconds, bucket.nbytes, path, self.threads[rank])
