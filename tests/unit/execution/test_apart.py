"""Given tensors that lie apart and are mapped there, then sinks read each where it lies, and notice other bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ckpt_transport.checkpoint.scattered import ExportedTensors
from ckpt_transport.checkpoint.watched import Watched
from ckpt_transport.control import Mailbox, RouteControl
from ckpt_transport.errors import TransferError
from ckpt_transport.execution import RankSchedule, SinkDigests
from ckpt_transport.execution.applies import HANDED_OVER_BYTES
from ckpt_transport.execution.samples import END_BYTES
from ckpt_transport.memory import Lendable, MemoryKind, MemoryRun, Runs
from ckpt_transport.planning import (
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    RankInfo,
    Role,
    Settings,
    StageKind,
    TensorSpec,
    Topology,
)
from ckpt_transport.transports import MappedEndpoint
from ckpt_transport.transports.interface import Control, Descriptor, Endpoint, FanOut, Group, Reach, Traits
from ckpt_transport_shm.plugin import ShmTransport
from tests.unit.execution.fleets import check
from tests.unit.execution.test_digests import ComparingFleet
from tests.unit.execution.test_handing_over import digesting
from tests.unit.worlds import World

SIZES = [1, 255, 4096, 8192, 8193, 100_003, 7, 70_000]
"""Shorter and longer than what is compared of a tensor."""


class InProcessEndpoint(MappedEndpoint):
    """Shows tensors that lie apart to the threads of one process."""

    known: dict[bytes, Runs] = {}  # noqa: RUF012

    def _describe_runs(self, memory: Lendable) -> Descriptor:
        descriptor = f"{id(memory)}".encode()
        self.known[descriptor] = memory.runs
        return descriptor

    def _map(self, sender: int, descriptor: Descriptor) -> Runs:
        return self.known[descriptor]


class InProcessTransport(ShmTransport):
    """Maps what the kind of lent tensors on a GPU stands for, in memory of the host."""

    traits = Traits(
        reach=Reach.PEERS,
        sends_from=frozenset({MemoryKind.EXPORTED}),
        maps_memory=True,
        fan_out=FanOut.CONSTANT,
        bandwidth=1e12,
        latency=0.0,
    )

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return InProcessEndpoint(group, control)


@dataclass
class _Compared:
    """What a sink is to hold: the bytes of an extent, in the order of its layout."""

    tensor: torch.Tensor


class ApartFleet(ComparingFleet):
    """Its source lends tensors; each lies in memory of its own."""

    def __init__(self, plan: Plan, **others: Any) -> None:
        super().__init__(plan, transports={"mapped": InProcessTransport()}, **others)
        places = plan.manifest.tensors
        self.tensors = [torch.randint(0, 256, (place.nbytes,), dtype=torch.uint8) for place in places]
        watched = Watched({place.spec.name: tensor for place, tensor in zip(places, self.tensors, strict=True)})
        (extent,) = plan.manifest.extents
        self.lent = ExportedTensors.of(self.tensors, [place.offset for place in places], extent.nbytes, watched)
        whole = torch.zeros(extent.nbytes, dtype=torch.uint8)
        for place, tensor in zip(places, self.tensors, strict=True):
            whole[place.offset : place.offset + place.nbytes] = tensor
        self.extents = [_Compared(whole)]  # type: ignore[list-item]

    def _lent(self, *_: object) -> Lendable:  # type: ignore[override]
        return self.lent

    def own(self, *_: object) -> Mapping[int, Lendable]:  # type: ignore[override]
        return {0: self.lent}


def apart(bucket_bytes: int = 1 << 14, sizes: Sequence[int] = SIZES) -> Plan:
    """A source whose tensors lie apart on a GPU, and two sinks that can read it."""
    placed, offset = [], 0
    for number, nbytes in enumerate(sizes):
        placed.append(PlacedTensor(TensorSpec(f"t{number}", "U8", (nbytes,)), 0, offset, nbytes))
        offset += -(-nbytes // 256) * 256
    members = (
        RankInfo(0, Role.SOURCE, "here", 1 << 30, ("mapped",), devices=("gpu",)),
        *(RankInfo(rank, Role.SINK, "here", 1 << 30, ("mapped",), devices=("gpu",)) for rank in (1, 2)),
    )
    version = Manifest("step-1", (Extent(0, offset, MemoryKind.EXPORTED, "gpu"),), tuple(placed))
    settings = Settings(bucket_bytes=bucket_bytes, ring_depth=2)
    plan = World(version, Topology(members), {"mapped": InProcessTransport.traits}, settings).plan()
    assert all(map(plan.lies_apart, plan.buckets))
    return plan


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("bucket_bytes", [1 << 14, 1 << 20])
def test_given_tensors_that_lie_apart_then_sinks_read_each_where_it_lies_and_all_digests_agree(
    bucket_bytes: int, first: bool
) -> None:
    """Also where a tensor is cut between buckets."""
    check(ApartFleet(apart(bucket_bytes), first=first))


@pytest.mark.parametrize(("count", "threads"), [(1, 0), (HANDED_OVER_BYTES // END_BYTES, 1)])
def test_given_a_long_bucket_of_a_few_tensors_then_the_digest_of_their_ends_is_computed_where_it_is_applied(
    count: int, threads: int
) -> None:
    """To hand it to another thread takes longer. That of many tensors is handed over."""
    plan = apart(1 << 30, [2 * HANDED_OVER_BYTES // count] * count)
    (bucket,) = plan.buckets
    runs = (MemoryRun(0, torch.zeros(bucket.nbytes, dtype=torch.uint8)),)
    with Mailbox() as mailbox:
        channel = RouteControl(mailbox, Group("digests", (1,), 1, ("here",)), {1: mailbox.address})
        digests = SinkDigests(RankSchedule(plan, 1), channel, "a sink", mailbox.wake)
        before = digesting()
        digests.look(bucket, runs)
        assert len(digesting() - before) == threads
        digests.close()


@pytest.mark.parametrize("where", [0, -1])
def test_given_an_owner_that_changes_a_tensor_between_two_updates_then_sinks_find_another_digest(where: int) -> None:
    """Given a write past torch, which nobody counts, then what was compared before does not hold any more.

    The sink that finds it first ends the run for the other one.
    """
    fleet = ApartFleet(apart())
    check(fleet)
    fleet.tensors[0].numpy()[where] ^= 1
    outcomes = fleet.run()
    errors = [outcomes[rank].error for rank in (1, 2)]
    found = [str(error) for error in errors if isinstance(error, TransferError)]
    assert found
    assert all("t0" in error for error in found)


def test_given_another_version_then_what_is_known_of_the_buckets_of_a_plan_is_the_same() -> None:
    """Then endpoints know it again."""
    schedule = RankSchedule(apart(), 0)
    steps = [step for step in schedule.steps if step.kind is StageKind.TRANSFER]
    first, later = ([schedule.transfer(step, seq) for seq, step in enumerate(steps, start)] for start in (0, 100))
    assert [transfer.seq for transfer in later] == [transfer.seq + 100 for transfer in first]
    assert all(one.spans is other.spans for one, other in zip(first, later, strict=True))
