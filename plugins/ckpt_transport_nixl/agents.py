"""Agents that read at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue

from ckpt_transport_nixl.agent import Agent, Memory


class Agents:
    """One agent that lends and reads, and others that only read; they are made when there is somebody to read from.

    Within a host NIXL reads while it posts: an agent then does one read at a time, on one core.

    Args:
        make: makes the agent with this number, the first of them now.
        count: how many there may be.
        each: how many reads one does at once.
    """

    def __init__(self, make: Callable[[int], Agent], count: int, each: int) -> None:
        self._make, self._count, self._each = make, count, each
        self._all: list[Agent] = []
        self._idle: SimpleQueue[Agent] = SimpleQueue()
        self._registered: list[tuple[Memory, bool]] = []
        self._add()

    def _add(self) -> None:
        agent = self._make(len(self._all))
        self._all.append(agent)
        for memory, cuda in self._registered:
            agent.register(memory, cuda=cuda)
        for _ in range(self._each):
            self._idle.put(agent)

    def register(self, memory: Memory, *, cuda: bool) -> bytes:
        """As :meth:`~ckpt_transport_nixl.agent.Agent.register`, of the first; the others can read into it."""
        metadata, *_ = [agent.register(memory, cuda=cuda) for agent in self._all]
        self._registered.append((memory, cuda))
        return metadata

    def unregister(self, memory: Memory, *, cuda: bool) -> None:
        """Undo :meth:`register`; does nothing once the agents are closed."""
        self._registered.remove((memory, cuda))
        for agent in self._all:
            agent.unregister(memory, cuda=cuda)

    def load(self, metadata: bytes) -> str:
        """As :meth:`~ckpt_transport_nixl.agent.Agent.load`, for all."""
        while len(self._all) < self._count:
            self._add()
        name, *_ = [agent.load(metadata) for agent in self._all]
        return name

    def forget(self, peer: str) -> None:
        """Unlearn all memory of a peer, and disconnect."""
        for agent in self._all:
            agent.forget(peer)

    def read(
        self, peer: str, local: Sequence[Memory], remote: Sequence[Memory], *, into_cuda: bool, from_cuda: bool
    ) -> None:
        """As :meth:`~ckpt_transport_nixl.agent.Agent.read`, by one that is idle."""
        agent = self._idle.get()
        try:
            agent.read(peer, local, remote, into_cuda=into_cuda, from_cuda=from_cuda)
        finally:
            self._idle.put(agent)

    def stop(self) -> None:
        """Have every :meth:`read` that waits return. Idempotent."""
        for agent in self._all:
            agent.stop()

    def close(self) -> None:
        """As :meth:`~ckpt_transport_nixl.agent.Agent.close`, of all. Idempotent."""
        for agent in self._all:
            agent.close()
