"""What a sink has to know of the buckets of a plan is found out before its requests are held."""

from __future__ import annotations

from functools import partial

from ckpt_transport.engine import Engine, LoadedBucket
from ckpt_transport.execution import RankSchedule
from ckpt_transport.memory import no_collections
from ckpt_transport.planning import Bucket, Plan
from ckpt_transport.update.received import ReceivedBytes


def key_of(plan: Plan, bucket: Bucket) -> tuple[object, ...]:
    """What identifies a bucket for an engine that needs all of it."""
    return plan.shape, *bucket.first


def foresee(schedule: RankSchedule, engine: Engine, received: ReceivedBytes, *, compared: bool) -> None:
    """Have the engine, and what computes digests, find out now what they have to know of each bucket.

    Args:
        schedule, engine: of this rank.
        received: what it has; nothing of the version.
        compared: digests are.
    """
    plan, coming = schedule.plan, []
    with no_collections():
        for number, runs in schedule.expected:
            bucket = plan.buckets[number]
            coming.append(LoadedBucket(key_of(plan, bucket), runs, partial(received.lacking, plan, bucket)))
            sample = schedule.samples.of(schedule.rank, number) if compared else None
            if sample is not None:
                sample.foresee(engine.device, runs)
        engine.foresee(coming)
