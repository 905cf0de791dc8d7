"""Given a peer's memory, when two agents of NIXL read it, then both read the same, wherever it goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ckpt_transport import registry
from ckpt_transport_nixl.agent import Agent, Memory
from ckpt_transport_nixl.agents import Agents

pytestmark = pytest.mark.skipif(not registry.available("nixl").ok, reason="NIXL is not installed")
NBYTES = 1 << 20


class Made(list[Agent]):
    """Agents in the order in which they were made."""

    def __call__(self, number: int) -> Agent:
        assert number == len(self)
        self.append(Agent(f"reader/{number}"))
        return self[-1]


def memory(tensor: torch.Tensor) -> Memory:
    return Memory(tensor.data_ptr(), tensor.numel(), 0)


@pytest.fixture
def lent() -> Iterator[tuple[torch.Tensor, bytes]]:
    """A peer's memory, and what it says of it."""
    tensor = torch.randint(0, 256, (NBYTES,), dtype=torch.uint8)
    lender = Agent("lender")
    yield tensor, lender.register(memory(tensor), cuda=False)
    lender.close()


def test_who_only_lends_has_one_agent(lent: tuple[torch.Tensor, bytes]) -> None:
    made = Made()
    agents = Agents(made, 2, 1)
    agents.register(memory(torch.zeros(NBYTES, dtype=torch.uint8)), cuda=False)
    assert len(made) == 1
    agents.load(lent[1])
    assert len(made) == 2
    agents.close()


def test_all_agents_read_into_memory_registered_before_and_after_they_were_made(
    lent: tuple[torch.Tensor, bytes],
) -> None:
    source, metadata = lent
    agents = Agents(Made(), 2, 1)
    before, after = (torch.zeros(NBYTES, dtype=torch.uint8) for _ in range(2))
    agents.register(memory(before), cuda=False)
    peer = agents.load(metadata)
    agents.register(memory(after), cuda=False)
    for target in (before, after):
        for _ in range(2):  # they take turns
            target.zero_()
            agents.read(peer, [memory(target)], [memory(source)], into_cuda=False, from_cuda=False)
            assert torch.equal(target, source)
        agents.unregister(memory(target), cuda=False)
    agents.forget(peer)
    agents.close()
