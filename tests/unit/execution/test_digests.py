"""Whatever a plan does with buckets, owners and sinks find the same digests; and not where a byte has changed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as checked

from ckpt_transport.control import Mailbox, RouteControl
from ckpt_transport.errors import TransferError
from ckpt_transport.execution import (
    Digests,
    FirstSinkDigests,
    OwnerDigests,
    PromptOwnerDigests,
    RankSchedule,
    SinkDigests,
)
from ckpt_transport.memory import Buffer, Fence, MemoryKind, MemoryRun, divided_digest, usable_cores
from ckpt_transport.memory.host_digest import sums_along
from ckpt_transport.planning import IN_PLACE, Plan, Settings
from ckpt_transport.transports.interface import Group
from tests.unit.devices import PATIENCE
from tests.unit.execution.fleets import Fleet, Outcome, check, small
from tests.unit.planning.test_reads import COLUMNS, planned
from tests.unit.worlds import INVENTED, World, alternating, chained, manifest, topology, worlds


class ComparingFleet(Fleet):
    """Every sink compares everything, beside its engine or before it."""

    def __init__(self, plan: Plan, *, first: bool = False, **others: Any) -> None:
        super().__init__(plan, **others)
        self.kinds = (PromptOwnerDigests, FirstSinkDigests) if first else (OwnerDigests, SinkDigests)
        self.made: dict[int, Digests] = {}

    def digests(self, schedule: RankSchedule, mailbox: Mailbox, mailboxes: Sequence[Mailbox]) -> Digests:
        ranks = tuple(range(self.size))
        group = Group("digests", ranks, schedule.rank, tuple("here" for _ in ranks))
        channel = RouteControl(mailbox, group, {rank: other.address for rank, other in enumerate(mailboxes)})
        owner, sink = self.kinds
        if schedule.rank in self.plan.topology.sinks:
            made: Digests = sink(schedule, channel, f"sink {schedule.rank}", mailbox.wake)
        else:
            made = owner(schedule, channel, self.own(schedule), mailbox.wake)
        self.made[schedule.rank] = made
        self.barrier.wait(PATIENCE)
        return made

    def own(self, schedule: RankSchedule) -> Mapping[int, Buffer]:
        extents = enumerate(self.plan.manifest.extents)
        return {number: self.extents[number] for number, extent in extents if extent.owner == schedule.rank}

    def run(self) -> dict[int, Outcome]:
        outcomes = super().run()
        for made in self.made.values():
            made.close()
        return outcomes


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("transport", ["wire", "screen", "wire+window", "read+post"])
@pytest.mark.parametrize("ring_depth", [1, 3])
def test_given_chains_and_small_rings_then_all_digests_agree(transport: str, ring_depth: int, first: bool) -> None:
    check(ComparingFleet(chained(transport, ring_depth=ring_depth).plan(), first=first))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("transport", "hosts"), [("screen", "aabb"), ("wire+window", "aabb")])
def test_given_buckets_that_lie_in_several_runs_then_every_byte_arrives_and_all_digests_agree(
    transport: str, hosts: str, first: bool
) -> None:
    plan = alternating(transport, hosts).plan()
    assert any(bucket.gathered and bucket.fill_slot == IN_PLACE for bucket in plan.buckets)
    check(ComparingFleet(plan, first=first))


@checked(max_examples=25, deadline=None)
@given(worlds())
def test_given_any_world_then_all_digests_agree(world: World) -> None:
    check(ComparingFleet(world.plan()))


@pytest.mark.parametrize("transport", ["wire", "window", "read"])
def test_given_a_second_run_then_bytes_that_are_sent_where_they_lie_are_not_read_again(transport: str) -> None:
    plan = small(transport, kind=MemoryKind.PRIVATE if transport == "read" else MemoryKind.SHARED)
    fleet = ComparingFleet(plan)
    check(fleet)
    known = [dict(extent.digests) for extent in fleet.extents]
    assert [len(each) for each in known] == [len(plan.buckets)]


def digest_key(plan: Plan, bucket: int) -> Hashable:
    """By which the digest of a bucket is kept with its extent."""
    ((sample, _),) = RankSchedule(plan, 0).samples.compared(bucket)
    return sample.key


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("transport", ["wire", "window"])
def test_given_a_byte_that_changes_on_its_way_then_each_sink_names_it(transport: str, first: bool) -> None:
    """Given digests from before a byte was changed, when buckets move, then sinks say which tensor, and which way."""
    plan = small(transport)
    fleet = ComparingFleet(plan, first=first)
    fleet.extents[0].digests[digest_key(plan, 3)] = bytes(16)
    outcomes = fleet.run()
    errors = [outcomes[rank].error for rank in plan.topology.sinks]
    wrong = [str(error) for error in errors if isinstance(error, TransferError)]
    name = plan.manifest.tensors[plan.buckets[3].first[0]].spec.name
    assert any(
        f"got bytes of {name} (bucket 3)" in error and f"by '{transport}' from rank 0" in error for error in wrong
    )


@pytest.mark.parametrize("first", [False, True])
def test_given_a_bucket_that_differs_when_sinks_compare_first_then_their_engines_are_not_given_it(first: bool) -> None:
    plan = small("window")
    fleet = ComparingFleet(plan, first=first)
    fleet.extents[0].digests[digest_key(plan, 0)] = bytes(16)
    outcomes = fleet.run()
    assert all(outcomes[rank].error is not None for rank in plan.topology.sinks)
    if first:
        assert all(not outcomes[rank].applied for rank in plan.topology.sinks)


def test_given_a_bucket_whose_digest_was_not_computed_then_the_run_does_not_end_well() -> None:
    plan = small("window")
    rank = min(plan.topology.sinks)
    with Mailbox() as mailbox:
        channel = RouteControl(mailbox, Group("digests", (rank,), rank, ("here",)), {rank: mailbox.address})
        made = SinkDigests(RankSchedule(plan, rank), channel, "a sink", mailbox.wake)
        with pytest.raises(TransferError, match="a sink has applied bucket 0 and not computed its digest"):
            made.finish(lambda: None, mailbox.pump)
        made.close()


def test_given_a_round_that_is_closed_while_parts_of_a_digest_are_left_then_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given workers that are all at one bucket when another is left to them, and no time for that one."""
    plan = World(
        manifest([8 << 20] * 2),
        topology(["a"], ["a"]),
        INVENTED,
        Settings(transport="post", bucket_bytes=8 << 20),
    ).plan()
    (rank,) = plan.topology.sinks
    at_work, go_on = threading.Semaphore(0), threading.Event()

    def held_up(*args: Any) -> None:
        at_work.release()
        assert go_on.wait(PATIENCE)
        sums_along(*args)

    monkeypatch.setattr(divided_digest, "sums_along", held_up)
    with Mailbox() as mailbox:
        channel = RouteControl(mailbox, Group("digests", (rank,), rank, ("here",)), {rank: mailbox.address})
        made = SinkDigests(RankSchedule(plan, rank), channel, "a sink", mailbox.wake)
        ends = []
        for bucket in plan.buckets:
            runs = (MemoryRun(0, torch.zeros(bucket.nbytes, dtype=torch.uint8)),)
            assert made.along(bucket, runs) is not None
            ends.append(made.read(bucket, runs, None))
        for _ in range(usable_cores()):
            assert at_work.acquire(timeout=PATIENCE)
        heard: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        waiting = threading.Thread(target=lambda: heard.put(raised_by(ends[1])), daemon=True)
        closing = threading.Thread(target=made.close)
        waiting.start()
        closing.start()
        try:
            assert isinstance(heard.get(timeout=PATIENCE), CancelledError)
        finally:
            go_on.set()
            closing.join(PATIENCE)


def raised_by(end: Fence | None) -> BaseException | None:
    """What somebody hears who waits for this."""
    assert end is not None
    try:
        end.synchronize()
    except Exception as error:
        return error
    return None


# -- sinks that read slices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("transport", "hosts"), [("window", "aaaa"), ("wire+window", "bbaa"), ("screen", "ab")])
def test_given_sinks_that_read_slices_of_what_they_map_then_all_digests_agree(
    transport: str, hosts: str, first: bool
) -> None:
    check(ComparingFleet(planned(transport, hosts, bucket_bytes=300), first=first))


def ran(plan: Plan) -> tuple[torch.Tensor, dict[Hashable, bytes]]:
    """What the source of a run held, and the digests that it made of that."""
    fleet = ComparingFleet(plan)
    held = fleet.extents[0].tensor.clone()
    check(fleet)
    return held, dict(fleet.extents[0].digests)


def again(plan: Plan, held: torch.Tensor, digests: Mapping[Hashable, bytes], *, first: bool = False) -> ComparingFleet:
    """The same for another run, with digests that were made before."""
    fleet = ComparingFleet(plan, first=first)
    fleet.extents[0].tensor.copy_(held)
    fleet.extents[0].digests.update(digests)
    return fleet


def test_given_sinks_of_two_shares_then_the_owner_makes_a_digest_for_each_and_keeps_them() -> None:
    """Given two engines of two ranks, then ranks with one share compare with one digest."""
    plan = planned("window", "aaaa", bucket_bytes=4096)
    assert len(plan.buckets) == 1
    held, digests = ran(plan)
    assert len(digests) == 2
    fleet = again(plan, held, digests)
    check(fleet)
    assert fleet.extents[0].digests == digests


@pytest.mark.parametrize("first", [False, True])
def test_given_a_byte_that_one_sink_reads_when_it_changes_then_that_sink_finds_it_and_the_other_does_not_read_it(
    first: bool,
) -> None:
    """Given a matrix that two ranks cut by columns, and a byte of the second half of a row that is changed later."""
    plan = planned("window", "aa", bucket_bytes=4096)
    held, digests = ran(plan)
    tensor = next(each for each in plan.manifest.tensors if each.spec.name == "1.down")
    held[tensor.offset + 3 * COLUMNS + COLUMNS // 2] ^= 1
    outcomes = again(plan, held, digests, first=first).run()
    assert not isinstance(outcomes[1].error, TransferError)
    assert isinstance(outcomes[2].error, TransferError)
    assert "sink 2 got bytes of" in str(outcomes[2].error)
