"""Given a peer's memory, when an engine of Mooncake reads it in many spans, then all arrive, or it is an error."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from ckpt_transport.errors import PeerLostError, TransferError
from ckpt_transport.testing import RankContext, launch
from ckpt_transport.transports import registry
from ckpt_transport_mooncake.engine import BATCH, MooncakeEngine

pytestmark = pytest.mark.skipif(not registry.available("mooncake").ok, reason="Mooncake is not installed")
DEADLINE = 150.0
NO_ROOM = {"MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER": "1", "MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER": "1"}
SPAN = 5
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Lent:
    """Memory of rank 0, and an engine of this rank and memory of it to read into. That of rank 0 is full."""

    engine: MooncakeEngine
    memory: torch.Tensor
    peer: str
    address: int
    process: int

    def read(self, count: int) -> None:
        places = range(0, count * SPAN, SPAN)
        local = [self.memory.data_ptr() + place for place in places]
        self.engine.read(self.peer, local, [self.address + place for place in places], [SPAN] * count)


@contextlib.contextmanager
def lent(context: RankContext, count: int) -> Iterator[Lent]:
    """Room for so many spans."""
    control = context.control(context.group("aside"))
    full = torch.arange(count * SPAN).to(torch.uint8)
    memory = full if context.rank == 0 else torch.zeros_like(full)
    with contextlib.closing(MooncakeEngine(LOOPBACK, "tcp", ())) as engine:
        engine.register(memory.data_ptr(), memory.nbytes)
        said = control.exchange(f"{engine.address} {memory.data_ptr()} {os.getpid()}".encode(), DEADLINE)
        peer, address, process = said[0].decode().split()
        yield Lent(engine, memory, peer, int(address), int(process))
        control.exchange(b"", DEADLINE)


@contextlib.contextmanager
def stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def read_from_the_other(context: RankContext, count: int) -> int:
    """How many bytes are as they should be, at rank 1."""
    with lent(context, count) as here:
        if context.rank == 1:
            here.read(count)
        return int((here.memory == torch.arange(count * SPAN).to(torch.uint8)).sum())


def read_without_room(context: RankContext) -> str:
    """What rank 1 is told that reads more than its queue takes, from a peer that does not answer."""
    os.environ.update(NO_ROOM)
    with lent(context, 64) as here:
        if context.rank == 0:
            return ""
        here.read(1)
        with stopped(here.process), pytest.raises(PeerLostError) as caught:
            here.read(64)
        return str(caught.value)


def read_once_stopped(context: RankContext) -> int:
    """How many bytes have arrived at rank 1, whose engine was stopped before."""
    with lent(context, 64) as here:
        if context.rank == 0:
            return 0
        here.engine.stop()
        with pytest.raises(TransferError, match="stopped reading"):
            here.read(64)
        return int(here.memory.sum())


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 16 * BATCH + 1])
def test_given_more_spans_than_mooncake_queues_when_they_are_read_then_all_arrive(count: int) -> None:
    _, reader = launch(read_from_the_other, 2, count, deadline=DEADLINE)
    assert reader.value == count * SPAN, reader


def test_given_reads_that_mooncake_rejects_when_the_first_never_ends_then_it_is_an_error() -> None:
    _, reader = launch(read_without_room, 2, deadline=DEADLINE)
    assert reader.ok, reader
    assert "is MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER set below 512?" in reader.value


def test_given_an_engine_that_was_stopped_when_it_is_to_read_then_it_does_not_begin() -> None:
    _, reader = launch(read_once_stopped, 2, deadline=DEADLINE)
    assert reader.value == 0, reader
