"""Given members of a communicator that do not do their part, when the others wait for them, then not for long."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

import pytest
import torch

from ckpt_transport.errors import TransferTimeout
from ckpt_transport.memory import name_of
from ckpt_transport.transports.interface import Control, Group
from ckpt_transport_nccl.library import Communicator, unique_id
from ckpt_transport_nccl.plugin import NcclEndpoint
from tests.gpu.test_conformance import NCCL_SHARES_A_GPU

context = multiprocessing.get_context("spawn")
LAST_GPU = torch.cuda.device_count() - 1
needs_two_ranks = pytest.mark.skipif(
    not (LAST_GPU or NCCL_SHARES_A_GPU), reason="needs two GPUs, or an NCCL that lets ranks share one"
)


class PipeControl(Control):
    """A control channel to one other member, which only listens."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def send(self, rank: int, payload: bytes) -> None:
        """Nobody reads it."""

    def receive(self) -> None:
        return None

    def wake(self) -> None:
        """Nobody sleeps."""

    def exchange(self, payload: bytes, timeout: float) -> dict[int, bytes]:
        self._pipe.send(payload)
        return {0: payload, 1: b""}


def meet_and_leave_it_there(pipe: Connection) -> None:
    torch.cuda.set_device(LAST_GPU)
    Communicator(pipe.recv(), 1, 2, time.monotonic() + 60, lambda: None)
    pipe.send("met")
    pipe.poll(None)


def test_given_a_communicator_of_two_when_the_other_never_comes_then_it_is_given_up() -> None:
    started = time.monotonic()
    with pytest.raises(TransferTimeout, match="did not turn up"):
        Communicator(unique_id(), 0, 2, started + 2, lambda: None)
    assert time.monotonic() < started + 30


@needs_two_ranks
def test_given_a_member_that_takes_no_part_in_the_first_broadcast_then_the_endpoint_is_given_up() -> None:
    ours, theirs = context.Pipe()
    other = context.Process(target=meet_and_leave_it_there, args=(theirs,), daemon=True)
    other.start()
    devices = tuple(name_of(torch.device("cuda", gpu)) for gpu in (0, LAST_GPU))
    group = Group("idle", (0, 1), 0, ("here", "here"), devices)
    with pytest.raises(TransferTimeout, match="took no part in the first broadcast"):
        NcclEndpoint(group, PipeControl(ours), 20.0)
    assert ours.recv() == "met"
    ours.send("enough")
    other.join(30)
    assert other.exitcode == 0
