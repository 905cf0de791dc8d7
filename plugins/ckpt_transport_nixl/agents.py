"""Has several agents read at the same time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue

from ckpt_transport import TransportError
from ckpt_transport_nixl.agent import Agent, NixlMemory

logger = logging.getLogger(__name__)


class Agents:
    """One agent that lends and reads, and others that only read; they are made when there is somebody to read from.

    Within a host NIXL reads while it posts: an agent then does one read at a time, on one core.

    Args:
        make: makes the agent with this number, the first of them now.
        count: how many there may be. Where another cannot be made, those that there are read, and a warning is logged.
        each: how many reads one does at once.
    """

    def __init__(self, make: Callable[[int], Agent], count: int, each: int) -> None:
        self._make, self._count, self._each = make, count, each
        self._all: list[Agent] = []
        self._idle: SimpleQueue[Agent] = SimpleQueue()
        self._registered: list[NixlMemory] = []
        self._add()

    def register(self, memory: NixlMemory) -> bytes:
        """As :meth:`~ckpt_transport_nixl.agent.Agent.register`, of the first; the others can read into it."""
        described: list[bytes] = []
        with ExitStack() as undo:
            for agent in self._all:
                described.append(agent.register(memory))
                undo.callback(agent.unregister, memory)
            undo.pop_all()
        self._registered.append(memory)
        return described[0]

    def unregister(self, memory: NixlMemory) -> None:
        """Undo :meth:`register`; does nothing once the agents are closed."""
        self._registered.remove(memory)
        self.each_does(lambda agent: agent.unregister(memory))

    def load(self, metadata: bytes) -> str:
        """As :meth:`~ckpt_transport_nixl.agent.Agent.load`, for all."""
        while len(self._all) < self._count:
            try:
                self._add()
            except TransportError as error:
                logger.warning(
                    "%d of %d agents of NIXL read, because another fails: %s", len(self._all), self._count, error
                )
                self._count = len(self._all)
        name, *_ = [agent.load(metadata) for agent in self._all]
        return name

    def read(self, peer: str, local: Sequence[NixlMemory], remote: Sequence[NixlMemory]) -> None:
        """As :meth:`~ckpt_transport_nixl.agent.Agent.read`, by one that is idle."""
        agent = self._idle.get()
        try:
            agent.read(peer, local, remote)
        finally:
            self._idle.put(agent)

    def close(self) -> None:
        """As :meth:`~ckpt_transport_nixl.agent.Agent.close`, of all. Idempotent."""
        self.each_does(Agent.close)

    def each_does(self, act: Callable[[Agent], None]) -> None:
        """Have all agents do something, also those after one that fails."""
        with ExitStack() as acts:
            for agent in reversed(self._all):
                acts.callback(partial(act, agent))

    def _add(self) -> None:
        agent = self._make(len(self._all))
        with ExitStack() as undo:
            undo.callback(agent.close)
            for memory in self._registered:
                agent.register(memory)
            undo.pop_all()
        self._all.append(agent)
        for _ in range(self._each):
            self._idle.put(agent)
