"""Threads of one sink hand work to each other only where that takes less than the work."""

from __future__ import annotations

import threading
from typing import cast

import pytest
import torch

from ckpt_transport.control import Mailbox, RouteControl
from ckpt_transport.execution import Ledger, OwnerDigests, RankSchedule, SinkDigests
from ckpt_transport.execution.applies import HANDED_OVER_BYTES, AppliesBeside
from ckpt_transport.execution.computing import TASK_BYTES, in_tasks
from ckpt_transport.execution.ledger import Received
from ckpt_transport.memory import Buffer, Fence, MemoryKind, MemoryRun, Runs
from ckpt_transport.planning import Bucket, Plan, Settings, StageKind
from ckpt_transport.transports.interface import Group
from ckpt_transport.transports.operations import Receipt
from tests.unit.devices import PATIENCE
from tests.unit.worlds import INVENTED, World, manifest, topology

BUCKETS = 7
SHORT, LONG = 1024, HANDED_OVER_BYTES
SOURCE, SINK = 0, 1


def plan_of(bucket_bytes: int) -> Plan:
    settings = Settings(transport="window", bucket_bytes=bucket_bytes, ring_depth=1)
    return World(
        manifest([bucket_bytes] * BUCKETS, kind=MemoryKind.SHARED), topology(["a"], ["a"]), INVENTED, settings
    ).plan()


def arrived(plan: Plan) -> Ledger:
    """Of a sink to which everything has come, and which has applied nothing."""
    ledger = Ledger(RankSchedule(plan, SINK))
    for step in ledger.schedule.steps:
        if step.kind is StageKind.TRANSFER:
            landed = MemoryRun(0, torch.zeros(plan.buckets[step.bucket].nbytes, dtype=torch.uint8))
            ledger.received[step.bucket] = Received(cast(Receipt, None), (), (), landed)
            ledger.ended(step, 0.0)
    return ledger


def digesting() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ckpt-transport-digest")}


@pytest.mark.parametrize(("bucket_bytes", "wakes"), [(SHORT, 1), (LONG, BUCKETS)])
def test_given_buckets_that_wait_for_the_engine_then_the_pump_is_woken_once_for_all_short_ones(
    bucket_bytes: int, wakes: int
) -> None:
    woken: list[int] = []
    over, handed = threading.Event(), threading.Event()

    def apply(bucket: Bucket, runs: Runs) -> Fence | None:
        assert handed.wait(PATIENCE)
        return None

    def wake() -> None:
        woken.append(len(woken))
        if len(woken) == wakes:
            over.set()

    ledger = arrived(plan_of(bucket_bytes))
    applies = AppliesBeside(ledger, apply, lambda number, runs: True, wake, lambda: None)

    def pump() -> None:
        assert applies.advance()
        handed.set()
        assert over.wait(PATIENCE)
        applies.advance()
        for step, started in applies.ended():
            ledger.ended(step, started)

    applies.run(pump)
    assert len(woken) == wakes
    assert ledger.closed


@pytest.mark.parametrize(("bucket_bytes", "threads"), [(SHORT, 0), (LONG, 1)])
def test_given_a_short_bucket_then_its_digest_is_computed_where_it_is_applied(bucket_bytes: int, threads: int) -> None:
    plan = plan_of(bucket_bytes)
    bucket, runs = plan.buckets[0], (MemoryRun(0, torch.zeros(bucket_bytes, dtype=torch.uint8)),)
    with Mailbox() as mailbox:
        channel = RouteControl(mailbox, Group("digests", (SINK,), SINK, ("here",)), {SINK: mailbox.address})
        digests = SinkDigests(RankSchedule(plan, SINK), channel, "a sink", mailbox.wake)
        before = digesting()
        digests.look(bucket, runs)
        assert len(digesting() - before) == threads
        if not threads:
            assert digests.read(bucket, runs, None) is None
        digests.close()


def test_given_many_short_buckets_then_their_owner_computes_their_digests_when_it_has_posted_the_first() -> None:
    plan = plan_of(SHORT)
    with Mailbox() as mailbox:
        group = Group("digests", (SOURCE, SINK), SOURCE, ("here",))
        channel = RouteControl(mailbox, group, dict.fromkeys((SOURCE, SINK), mailbox.address))
        before = digesting()
        memory = Buffer.private(plan.manifest.extents[0].nbytes)
        digests = OwnerDigests(RankSchedule(plan, SOURCE), channel, {0: memory}, mailbox.wake)
        assert not memory.digests
        digests.turn()
        assert len(memory.digests) == len(plan.buckets)
        assert digesting() == before
        digests.close()


def test_given_pieces_of_work_then_tasks_keep_their_order_and_are_no_shorter_than_need_be() -> None:
    sizes = [SHORT] * 3 + [TASK_BYTES] + [TASK_BYTES // 2] * 3
    assert list(in_tasks(sizes, int)) == [sizes[:4], sizes[4:6], sizes[6:]]
    assert list(in_tasks([], int)) == []
