"""What the transports over transfer libraries promise beyond the interface."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest
import torch

from ckpt_transport.control import RouteControl
from ckpt_transport.errors import TransferError, TransportError
from ckpt_transport.memory.segment import SHM
from ckpt_transport.spi import may_have_devices
from ckpt_transport.testing import RankContext, launch
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Endpoint, Span, Transfer
from tests.available import where_available
from tests.patience import PATIENCE

DEADLINE = 150.0
MIB = 1 << 20
TOO_LATE = "all had arrived"
ATTEMPTS = 10
"""How often a transfer may end before its receiver has noticed that it has begun, as on a busy machine."""
LIBRARIES = {"mooncake": "mooncake", "nixl": "nixl_cu13", "ucx": "ucxx"}
NAMES = [where_available(name) for name in LIBRARIES]


@pytest.mark.parametrize("name", LIBRARIES)
def test_given_a_plugin_when_it_is_imported_and_probed_then_its_library_is_not_imported(name: str) -> None:
    """Given a fresh interpreter, when the plugin is imported and probed, then its library has not been."""
    program = (
        "import sys; from ckpt_transport.transports import registry; "
        f"registry.load({name!r}).probe(); "
        f"sys.exit({LIBRARIES[name]!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=DEADLINE).returncode == 0


CURES = {} if may_have_devices() else {"mooncake": "pip install mooncake-transfer-engine-non-cuda"}
"""Where the extra would bring what does not load."""


@pytest.mark.parametrize("name", LIBRARIES)
def test_given_a_library_that_is_missing_then_the_probe_says_so_with_the_cure(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    hidden = ("mooncake", "nixl", "ucxx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked.startswith(hidden) else find(asked))

    state = registry.load(name).probe()

    assert not state.ok
    assert "not installed" in state.reason
    assert state.hint == CURES.get(name, f"pip install 'ckpt-transport[{name}]'")


# -- an abort half-way ----------------------------------------------------------------------------------------------


def abort_while_receiving(context: RankContext, name: str) -> str:
    """Rank 0 aborts as soon as it receives; whether its memory then stays as it is, and what rank 1 ends with."""
    nbytes = 256 * MIB
    endpoint, control = open_route(context, name)
    memory = endpoint.allocate(nbytes)
    memory.tensor.fill_(context.rank)
    region = endpoint.register(memory)
    descriptors = control.exchange(region.descriptor, DEADLINE)
    endpoint.connect({1: [descriptors[1]]})
    control.exchange(b"", DEADLINE)
    transfer = Transfer(0, 1, (0,), (Span(0, 0, 0, nbytes),))
    if context.rank == 1:
        try:
            ending(endpoint.post_send(transfer, [region]).done)
            said = TOO_LATE
        except TransportError as error:
            said = str(error)
        control.exchange(b"has ended", DEADLINE)
    else:
        receipt = endpoint.post_recv(transfer, region)
        end = time.monotonic() + DEADLINE
        under_way = True
        while under_way and not memory.tensor[:: 64 * 1024].any():
            assert time.monotonic() < end, "nothing arrives"
            under_way = not receipt.done()
        endpoint.abort(TransferError("enough"))
        region.close()
        before = memory.tensor.clone()
        control.exchange(b"", DEADLINE)
        said = ("quiet" if under_way else TOO_LATE) if torch.equal(memory.tensor, before) else "written to"
    endpoint.close()
    return said


@pytest.mark.parametrize("name", NAMES)
def test_given_a_transfer_under_way_when_its_receiver_aborts_then_its_memory_stays_as_it_is(name: str) -> None:
    """Given a long transfer under way, when its receiver aborts, then nobody writes into its memory any more."""
    for _ in range(ATTEMPTS):
        receiver, sender = launch(abort_while_receiving, 2, name, deadline=DEADLINE)
        if receiver.value != TOO_LATE:
            break
    assert receiver.value == "quiet", receiver
    assert "enough" in str(sender.value), sender


# -- processes ------------------------------------------------------------------------------------------------------


def fork_while_open(context: RankContext, name: str) -> int:
    """Every rank forks a child that ends at once, between two transfers; how many bytes were right in the second."""
    endpoint, control = open_route(context, name)
    memory = endpoint.allocate(MIB)
    region = endpoint.register(memory)
    descriptors = control.exchange(region.descriptor, DEADLINE)
    endpoint.connect({0: [descriptors[0]]})
    right = 0
    for seq in range(2):
        memory.tensor.fill_(seq + 7 if context.rank == 0 else 0)
        control.exchange(b"", DEADLINE)
        transfer = Transfer(seq, 0, (1,), (Span(0, 0, 0, MIB),))
        if context.rank == 0:
            ending(endpoint.post_send(transfer, [region]).done)
        else:
            ending(endpoint.post_recv(transfer, region).done)
            right = int((memory.tensor == seq + 7).sum())
        if seq == 0:
            child = os.fork()
            if child == 0:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    control.exchange(b"", DEADLINE)
    endpoint.close()
    return right


@pytest.mark.parametrize("name", NAMES)
def test_given_an_open_route_when_its_processes_fork_then_the_next_transfer_is_right(name: str) -> None:
    sender, receiver = launch(fork_while_open, 2, name, deadline=DEADLINE)
    assert sender.ok, sender
    assert receiver.value == MIB, receiver


def die_while_sending(context: RankContext, name: str) -> str:
    """Rank 0 is killed while rank 1 receives from it; what rank 1 is told."""
    nbytes = 512 * MIB
    endpoint, control = open_route(context, name)
    memory = endpoint.allocate(nbytes)
    memory.tensor.fill_(1 - context.rank)
    region = endpoint.register(memory)
    descriptors = control.exchange(region.descriptor, DEADLINE)
    endpoint.connect({0: [descriptors[0]]})
    context.watch()
    transfer = Transfer(0, 0, (1,), (Span(0, 0, 0, nbytes),))
    try:
        control.exchange(b"", DEADLINE)  # its last word may die with rank 0
        if context.rank == 0:
            posted = endpoint.post_send(transfer, [region])
            end = time.monotonic() + 0.03
            while time.monotonic() < end:
                posted.done()
            os.kill(os.getpid(), signal.SIGKILL)
        ending(endpoint.post_recv(transfer, region).done)
        return "done"
    except TransportError as error:
        return type(error).__name__
    finally:
        endpoint.close()


@pytest.mark.parametrize("name", NAMES)
def test_given_a_transfer_under_way_when_its_sender_is_killed_then_the_receiver_lives_and_is_told(name: str) -> None:
    """Given a long transfer under way, when its sender is killed, then the receiver lives and gets an error, or all."""
    killed, survivor = launch(die_while_sending, 2, name, deadline=DEADLINE, silence=2.0)
    assert killed.died is signal.SIGKILL
    assert survivor.value in {"PeerLostError", "TransferError", "done"}, survivor


@pytest.mark.parametrize("name", NAMES)
def test_given_a_route_that_was_used_then_nothing_is_left_in_shared_memory_or_the_environment(name: str) -> None:
    before = abandoned_by_ucx()
    sender, receiver = launch(environment_after_use, 2, name, deadline=DEADLINE)
    assert (sender.value, receiver.value) == ([], [])
    end = time.monotonic() + PATIENCE
    while left := abandoned_by_ucx() - before:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def abandoned_by_ucx() -> set[str]:
    """What UCX has made in shared memory and no process has mapped; processes of other tests may have just begun to."""
    made = [str(path) for path in SHM.iterdir() if "ucx" in path.name]
    mapped: set[str] = set()
    for process in psutil.process_iter() if made else ():
        with suppress(psutil.Error):
            mapped |= {mapping.path for mapping in process.memory_maps()}
    return set(made) - mapped


def environment_after_use(context: RankContext, name: str) -> list[str]:
    """Variables that opening a route has set."""
    before = set(os.environ)
    endpoint, _ = open_route(context, name)
    endpoint.close()
    return sorted(set(os.environ) - before)


def open_route(context: RankContext, name: str) -> tuple[Endpoint, RouteControl]:
    group = context.group("route")
    side_channel = context.control(context.group("side_channel"))
    return registry.make(name, {}).open(group, context.control(group), DEADLINE), side_channel


def ending(poll: Callable[[], bool]) -> None:
    """Poll until it is over."""
    end = time.monotonic() + DEADLINE
    while not poll():
        assert time.monotonic() < end, "it does not end"
