"""Given a peer's memory, when several agents of NIXL read it, then they read at once, and the same."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest
import torch

from ckpt_transport.errors import RegistrationError
from ckpt_transport.transports import registry
from ckpt_transport_nixl.agent import Agent, NixlMemory
from ckpt_transport_nixl.agents import Agents

pytestmark = pytest.mark.skipif(not registry.available("nixl").ok, reason="NIXL is not installed")
NBYTES = 1 << 20
DEADLINE = 150.0


class Reader(Agent):
    """Says when it reads, and waits until it may."""

    def __init__(self, number: int) -> None:
        super().__init__(f"reader/{number}")
        self.reads, self.may = threading.Event(), threading.Event()

    def read(self, peer: str, local: Sequence[NixlMemory], remote: Sequence[NixlMemory]) -> None:
        self.reads.set()
        assert self.may.wait(DEADLINE)
        super().read(peer, local, remote)


class Unable(Agent):
    """Cannot register memory."""

    def register(self, memory: NixlMemory) -> bytes:
        raise RegistrationError("no more")


def memory(tensor: torch.Tensor) -> NixlMemory:
    return NixlMemory(tensor.data_ptr(), tensor.numel(), 0)


def room() -> torch.Tensor:
    return torch.zeros(NBYTES, dtype=torch.uint8)


@pytest.fixture
def lent() -> Iterator[tuple[torch.Tensor, bytes]]:
    """A peer's memory, and what it says of it."""
    tensor = torch.randint(1, 256, (NBYTES,), dtype=torch.uint8)
    with closing(Agent("lender")) as lender:
        yield tensor, lender.register(memory(tensor))


def making(made: list[Agent], *kinds: Callable[[int], Agent]) -> Callable[[int], Agent]:
    """Makes one agent of each kind, and keeps them in a list."""

    def make(number: int) -> Agent:
        made.append(kinds[number](number))
        return made[-1]

    return make


def test_given_a_rank_that_only_lends_then_it_has_one_agent(lent: tuple[torch.Tensor, bytes]) -> None:
    made: list[Agent] = []
    with closing(Agents(making(made, Reader, Reader), 2, 1)) as agents:
        agents.register(memory(room()))
        assert len(made) == 1
        agents.load(lent[1])
        assert len(made) == 2


def test_given_memory_registered_before_and_after_then_two_reads_are_under_way_at_once(
    lent: tuple[torch.Tensor, bytes],
) -> None:
    source, metadata = lent
    made: list[Agent] = []
    with closing(Agents(making(made, Reader, Reader), 2, 1)) as agents, ThreadPoolExecutor(2) as threads:
        before, after = room(), room()
        agents.register(memory(before))
        peer = agents.load(metadata)
        agents.register(memory(after))
        read = partial(agents.read, peer, remote=[memory(source)])
        reading = [threads.submit(read, [memory(target)]) for target in (before, after)]
        for agent in made:
            assert isinstance(agent, Reader)
            assert agent.reads.wait(DEADLINE)
        for agent in made:
            assert isinstance(agent, Reader)
            agent.may.set()
        for future, target in zip(reading, (before, after), strict=True):
            future.result(DEADLINE)
            assert torch.equal(target, source)
            agents.unregister(memory(target))
        agents.each_does(lambda agent: agent.forget(peer))


def test_given_a_second_agent_that_cannot_be_had_then_the_first_reads(
    lent: tuple[torch.Tensor, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    source, metadata = lent
    with closing(Agents(making([], lambda _: Agent("reader"), lambda _: Unable("other")), 2, 1)) as agents:
        target = room()
        agents.register(memory(target))
        with caplog.at_level(logging.WARNING):
            peer = agents.load(metadata)
        assert "1 of 2 agents of NIXL read, because another fails: no more" in caplog.text
        for _ in range(2):
            target.zero_()
            agents.read(peer, [memory(target)], [memory(source)])
            assert torch.equal(target, source)
        agents.unregister(memory(target))
