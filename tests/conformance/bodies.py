"""What ranks do in the tests of the launcher and of the wrappers. Children import this by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ckpt_transport.errors import TransferError, TransportError
from ckpt_transport.testing import Fault, FaultKind, FaultTransport, LatencyTransport, RankContext, launch
from ckpt_transport.testing.harness import Rank, refuses
from ckpt_transport.transports.interface import Span, Transport
from ckpt_transport_shm import ShmTransport
from tests.conformance.transports import ReadTransport, SocketTransport

LATENCY = 0.05
SIZE = 10_000
FAULTY_SEQ = 1
PATIENCE = 120.0
"""Seconds for a rank, on a busy machine too."""


# -- the launcher ---------------------------------------------------------------------------------------------------


def answer(context: RankContext, word: str) -> str:
    return f"{word} {context.rank} of {context.world_size}"


def process_id(context: RankContext) -> int:
    return os.getpid()


def talk(context: RankContext) -> dict[int, bytes]:
    """What all have said. Rank 0, which hands it out, stays until everybody has it."""
    control = context.control(context.group("talk"))
    said = control.exchange(b"from %d" % context.rank, PATIENCE)
    if context.rank:
        control.send(0, b"thanks")
        return said
    thanked: set[int] = set()
    end = time.monotonic() + PATIENCE
    while len(thanked) < context.world_size - 1:
        assert time.monotonic() < end
        context.mailbox.pump(0.01)
        while (message := control.receive()) is not None:
            thanked.add(message[0])
    return said


def crash_in_many_ways(context: RankContext) -> object:
    if context.rank == 1:
        raise ValueError("no reason")
    if context.rank == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if context.rank == 3:
        os._exit(7)
    if context.rank == 4:
        return threading.Lock()
    return "fine"


def hang_in_rank_1(context: RankContext) -> str:
    if context.rank == 1:
        wait_for_ever()
    return "fine"


def wait_for_ever() -> None:
    threading.Event().wait()


def write_pid_and_hang(context: RankContext, folder: str) -> None:
    file = Path(folder, f"{context.rank}.writing")
    file.write_text(str(os.getpid()))
    file.rename(file.with_suffix(".pid"))
    wait_for_ever()


def parent_that_is_killed(folder: str) -> None:
    """The main program of a process of its own."""
    launch(write_pid_and_hang, 2, folder, deadline=100)


def start_parent(folder: Path) -> subprocess.Popen[bytes]:
    code = f"from {__name__} import parent_that_is_killed; parent_that_is_killed({str(folder)!r})"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


# -- the wrappers ---------------------------------------------------------------------------------------------------


def slow() -> Transport:
    return LatencyTransport(SocketTransport(), latency_s=0.001, bandwidth=2e9)


def harmless() -> Transport:
    return FaultTransport(ShmTransport(), [])


def very_slow() -> Transport:
    return LatencyTransport(ReadTransport(), latency_s=LATENCY, bandwidth=SIZE / LATENCY)


def very_late() -> Transport:
    return LatencyTransport(SocketTransport(), latency_s=PATIENCE)


def measure(context: RankContext) -> tuple[float, float]:
    """Seconds that one transfer, and then two at once, take at least."""
    with Rank(context, very_slow, PATIENCE) as rank:
        route = rank.open(regions=(SIZE,), inbox=SIZE)
        route.fill(1)
        rank.side_channel.meet()
        span = Span(0, 0, 0, SIZE)
        began = time.monotonic()
        route.carry(route.transfer(span), 1)
        one = time.monotonic() - began
        rank.side_channel.meet()
        began = time.monotonic()
        transfers = [route.transfer(span), route.transfer(span)]
        posted = [route.post(transfer) for transfer in transfers]
        for receipt, transfer in zip(posted, transfers, strict=True):
            route.wait(receipt, transfer)
        return one, time.monotonic() - began


def meet_fault(context: RankContext, kind: FaultKind, inner: type[Transport], victim: int) -> str:
    """Transfer 0 goes well, transfer 1 meets the fault at ``victim``. Returns what this rank saw of it."""

    def faulty() -> Transport:
        return FaultTransport(inner(), [Fault(victim, FAULTY_SEQ, kind, nbytes=5)])

    dies = kind is FaultKind.KILL
    with Rank(context, faulty, PATIENCE, keeps_peers=not dies) as rank:
        route = rank.open(regions=(SIZE,), inbox=SIZE)
        route.fill(1)
        rank.side_channel.meet()
        route.carry(route.transfer(Span(0, 0, 0, SIZE)), 1)
        rank.side_channel.meet()
        if dies:
            rank.side_channel.watch()
        transfer = route.transfer(Span(0, 0, 0, SIZE))
        if kind is FaultKind.FAIL_POST and rank.number == victim:
            error = refuses("the post", lambda: route.post(transfer), TransferError)
            route.endpoint.abort(error)
            return str(error)
        posted = route.post(transfer)
        if kind is FaultKind.NEVER and rank.number == victim:
            route.stays_open(posted, transfer, "it never ends")
            route.endpoint.abort(TransferError("waited long enough"))
        try:
            route.wait(posted, transfer)
        except TransportError as error:
            return type(error).__name__
        tail = [int(byte) for view in posted.views() for byte in view[-6:]]
        posted.release()
        return f"done, {tail.count(0)} zeros"
