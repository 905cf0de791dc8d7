"""What members of a route tell each other: descriptors of memory, signals, addresses, digests, offers."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable

import msgspec
import torch
from hypothesis import strategies as st

from ckpt_transport.errors import MessageError
from ckpt_transport.execution import RankSchedule, SinkDigests
from ckpt_transport.memory import DistantMemory, PageRange, this_process
from ckpt_transport.memory.open_files import OpenFileServer, received_files
from ckpt_transport.memory.segment import PREFIX, Segment
from ckpt_transport.planning import Role
from ckpt_transport.transports.interface import Control, Group
from ckpt_transport.transports.polled import Signal, SignalKind
from ckpt_transport_gloo.rendezvous import ControlStore
from ckpt_transport_shm.plugin import ShmEndpoint
from ckpt_transport_shm.private_memory import PREFIX as PRIVATE
from ckpt_transport_shm.private_memory import PrivateMemory
from tests.fuzz.damage import BURSTS, changed, damaged
from tests.fuzz.fuzzing import fuzz
from tests.unit.worlds import chained

GROUP = Group("route", (0, 1), 1, ("here", "here"))


class Overheard(Control):
    """The control channel of a route on which rank 0 says these things."""

    def __init__(self, *said: bytes) -> None:
        self.said = deque(said)

    def send(self, rank: int, payload: bytes) -> None:
        """Nobody hears it."""

    def receive(self) -> tuple[int, bytes] | None:
        return (0, self.said.popleft()) if self.said else None

    def wake(self) -> None:
        """Nobody waits."""

    def exchange(self, payload: bytes, timeout: float) -> dict[int, bytes]:
        return dict.fromkeys(GROUP.ranks, payload)


def written(sample: object) -> st.SearchStrategy[bytes]:
    """Msgpack that says almost this, or anything."""
    data = msgspec.msgpack.encode(sample)
    tree = msgspec.msgpack.decode(data)
    return st.one_of(
        damaged([data]), changed([tree]).map(msgspec.msgpack.encode), st.sampled_from(BURSTS), st.binary(max_size=40)
    )


def test_given_a_descriptor_of_shared_memory_that_says_anything_then_that_segment_is_mapped_or_nothing() -> None:
    with_name = Segment.create(4096)
    odd = f"{PREFIX}{os.getuid()}-0-odd"

    def read(descriptor: bytes) -> None:
        endpoint = ShmEndpoint(GROUP, Overheard())
        try:
            mapped = endpoint._map(0, descriptor)
            assert isinstance(mapped, torch.Tensor)
            assert mapped.nbytes == 4096
        finally:
            endpoint.close()

    try:
        read(msgspec.msgpack.encode(with_name.name))
        names = (with_name.name, msgspec.structs.replace(with_name.name, name=odd))
        for name in names:
            fuzz(written(name), read)
    finally:
        with_name.close()


def test_given_a_descriptor_of_private_memory_that_says_anything_then_it_is_refused_or_only_that_process_is_read() -> (
    None
):
    there = torch.zeros(4096, dtype=torch.uint8)
    said = PrivateMemory(this_process(), (0, 256), (there.data_ptr(), there.data_ptr() + 256), (100, 200))

    def read(descriptor: bytes) -> None:
        endpoint = ShmEndpoint(GROUP, Overheard())
        try:
            mapped = endpoint._map(0, PRIVATE + descriptor)
            assert isinstance(mapped, DistantMemory)
            assert mapped.read.__self__.pid == os.getpid()  # type: ignore[attr-defined]
        finally:
            endpoint.close()

    read(msgspec.msgpack.encode(said))
    fuzz(written(said), read)


def test_given_a_range_of_a_gpu_that_says_anything_then_it_is_one_that_there_can_be_or_is_refused() -> None:
    def read(encoded: bytes) -> None:
        pages = PageRange.decoded(encoded)
        assert 0 < pages.nbytes < 1 << 62
        assert len(pages.keys) == len(pages.sizes)

    fuzz(written(PageRange("server", 1 << 40, (2 << 20, 20 << 20), (7, 9))), read)


def test_given_questions_for_open_files_that_say_anything_then_others_are_still_answered() -> None:
    with OpenFileServer(lambda address, number: os.memfd_create(f"{address} {number}")) as server:

        def ask(question: bytes) -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
                asking.connect(f"\0{server.socket_name}")
                asking.send(question)
            assert len(list(received_files(server.name, [(1, 2)]))) == 1

        secret = server.name.removeprefix(f"{server.socket_name}/")
        fuzz(written((secret, [(1 << 40, 7), (1 << 41, 9)])), ask)


def test_given_signals_that_say_anything_then_the_route_goes_on_or_fails() -> None:
    def read(payload: bytes) -> None:
        endpoint = ShmEndpoint(GROUP, Overheard(payload))
        try:
            endpoint._progress()
        finally:
            endpoint.close()

    for kind in SignalKind:
        fuzz(written(Signal(kind, 3, 2**62, "why")), read)


def test_given_addresses_of_gloo_that_say_anything_then_they_are_kept_or_refused() -> None:
    def read(payload: bytes) -> None:
        store = ControlStore(GROUP, Overheard(payload), 0.0)
        store.wait(["a key"])

    fuzz(written(("a key", b"an address")), read)


def test_given_digests_that_say_anything_then_they_are_taken_in_or_refused() -> None:
    plan = chained().plan()
    sink = next(rank for rank, each in enumerate(plan.topology.participants) if each.role is Role.SINK)
    schedule = RankSchedule(plan, sink)
    heard = Overheard()
    digests = SinkDigests(schedule, heard, "sink", lambda: None)
    take: Callable[[], None] = digests._take_in

    def read(payload: bytes) -> None:
        heard.said.append(payload)
        take()

    fuzz(written([(0, b"x" * 16), (1, b"y" * 16)]), read, MessageError)
