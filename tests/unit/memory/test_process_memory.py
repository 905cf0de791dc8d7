"""Given memory of another process, then it is read as it is there, or an error says what is in the way."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

import msgspec
import pytest
import torch

from ckpt_transport.errors import PeerLostError, TransferError
from ckpt_transport.memory import (
    HostCopies,
    HostCopy,
    OtherProcess,
    let_others_read,
    this_process,
    use_huge_pages,
    why_no_reading,
)
from tests.patience import DEADLINE
from tests.support.forbidden_calls import forbid_reading_processes

context = multiprocessing.get_context("spawn")
NBYTES = 20 << 20


def contents(nbytes: int = NBYTES) -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def hold(pipe: Connection) -> None:
    """A process with memory of its own, which it frees when it is told to."""
    let_others_read()
    memory = mmap.mmap(-1, NBYTES)
    view = torch.frombuffer(memory, dtype=torch.uint8)
    view.copy_(contents())
    pipe.send((this_process(), view.data_ptr()))
    while (order := pipe.recv()) != "end":
        if order == "huge pages":
            use_huge_pages([(view.data_ptr() + 1, NBYTES - 1)])
        if order == "free":
            assert ctypes.CDLL(None).munmap(ctypes.c_void_p(view.data_ptr()), ctypes.c_size_t(NBYTES)) == 0
        pipe.send("done")
    if order == "end":
        memory = None  # type: ignore[assignment]


@contextmanager
def held() -> Iterator[tuple[OtherProcess, int, Connection]]:
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(theirs,), daemon=True)
    process.start()
    try:
        assert ours.poll(DEADLINE)
        yield *ours.recv(), ours
    finally:
        process.kill()
        process.join()
        process.close()


@pytest.fixture(scope="module")
def other() -> Iterator[tuple[OtherProcess, int, Connection]]:
    with held() as found:
        yield found


def tell(pipe: Connection, order: str) -> None:
    pipe.send(order)
    assert pipe.poll(DEADLINE)
    assert pipe.recv() == "done"


def read(process: OtherProcess, address: int, places: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Bytes at an offset from ``address``, each to an odd address; nothing beside them may be written."""
    found = [torch.full((nbytes + 2,), 7, dtype=torch.uint8) for _, nbytes in places]
    process.read(
        HostCopies.of(
            HostCopy(target.data_ptr() + 1, address + offset, nbytes)
            for target, (offset, nbytes) in zip(found, places, strict=True)
        )
    )
    assert all(target[0] == target[-1] == 7 for target in found)
    return [target[1:-1] for target in found]


@pytest.mark.parametrize(
    "places",
    [
        [(0, 1)],
        [(4095, 2)],
        [(3, NBYTES - 3)],
        [(number * 13, number % 700) for number in range(1500)],
        [(5, 0), (6, 9 << 20), (1, 1)],
    ],
    ids=["one byte", "two pages", "nearly all", "many and odd", "none, much and one"],
)
def test_given_another_process_then_any_of_its_bytes_are_read_and_none_beside_them(
    other: tuple[OtherProcess, int, Connection], places: Sequence[tuple[int, int]]
) -> None:
    process, address, _ = other
    expected = contents()
    for (offset, nbytes), found in zip(places, read(process, address, places), strict=True):
        assert torch.equal(found, expected[offset : offset + nbytes])


def test_given_memory_that_is_put_into_huge_pages_then_it_holds_what_it_held() -> None:
    with held() as (process, address, pipe):
        tell(pipe, "huge pages")
        (found,) = read(process, address, [(0, NBYTES)])
        assert torch.equal(found, contents())


def test_given_memory_that_was_freed_then_the_error_says_so() -> None:
    with held() as (process, address, pipe):
        tell(pipe, "free")
        with pytest.raises(TransferError, match="must not be freed before the update has ended"):
            read(process, address, [(0, NBYTES)])


def test_given_a_process_that_has_ended_then_the_error_says_so() -> None:
    with held() as (process, address, _):
        process.check()
    with pytest.raises(PeerLostError, match=rf"process {process.pid}, whose memory was to be read, has ended"):
        read(process, address, [(0, 1)])


def test_given_a_process_that_got_the_number_of_another_then_it_is_not_taken_for_that(
    other: tuple[OtherProcess, int, Connection],
) -> None:
    process, address, _ = other
    for former in (msgspec.structs.replace(process, nonce=bytes(16)), msgspec.structs.replace(process, address=4096)):
        with pytest.raises(PeerLostError, match="has ended"):
            read(former, address, [(0, 1)])


def say_why_from_the_start(other: OtherProcess, pipe: Connection) -> None:
    forbid_reading_processes()
    pipe.send(why_no_reading())


def say_why_after_a_refusal(other: OtherProcess, pipe: Connection) -> None:
    assert why_no_reading() == ""
    other.check()
    forbid_reading_processes()
    with pytest.raises(TransferError, match="cannot be read: Operation not permitted"):
        other.check()
    pipe.send(why_no_reading())


@pytest.mark.parametrize("body", [say_why_from_the_start, say_why_after_a_refusal])
def test_given_a_system_that_refuses_then_it_is_said_that_nothing_can_be_read(
    other: tuple[OtherProcess, int, Connection], body: Callable[[OtherProcess, Connection], None]
) -> None:
    ours, theirs = context.Pipe()
    process = context.Process(target=body, args=(other[0], theirs), daemon=True)
    process.start()
    assert ours.poll(DEADLINE)
    assert "cannot be read: Operation not permitted" in ours.recv()
    process.join()
