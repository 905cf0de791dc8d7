"""Transports where all members call the same broadcast."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence

import torch

from ckpt_transport.errors import RegistrationError
from ckpt_transport.memory import Fence
from ckpt_transport.transports.interface import Control, Group, Transfer
from ckpt_transport.transports.operations import Completion, MemoryRegion, Receipt
from ckpt_transport.transports.polled import Poll, PolledEndpoint, PolledOperation


class _Turn:
    """The broadcasts of one transfer, started when every earlier transfer's have been."""

    def __init__(self, root: int, tensors: Sequence[torch.Tensor], agreed: Poll) -> None:
        self.root = root
        self._before = [agreed]
        self.waiting = deque(tensor for tensor in tensors if tensor.numel())
        self.polls: deque[Poll] = deque()
        self.started = False
        self.end: Fence | None = None

    def may_start(self) -> bool:
        while self._before and self._before[0]():
            self._before.pop()
        return not self._before

    def ended(self) -> bool:
        while self.polls and self.polls[0]():
            self.polls.popleft()
        return self.started and not self.polls


class CollectiveEndpoint(PolledEndpoint):
    """Write :meth:`_broadcast`. Every member of the route takes part in every transfer.

    A receiver joins a broadcast only once it knows that the sender means the same transfer: a collective whose members
    disagree hangs, cuts the bytes short, or (gloo) ends the process.
    """

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._turns: deque[_Turn] = deque()

    @abstractmethod
    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        """Start a broadcast of ``tensor`` (uint8, contiguous) from rank ``root``; return what polls its end.

        Broadcasts are started in the same order on every member. The poll says True when the sender may overwrite
        ``tensor``, or the receiver may read it.
        """

    def _enqueued(self) -> Fence | None:
        """The end of all broadcasts so far in the order of a device; override where :attr:`stream` is not None."""
        return None

    def _full(self) -> bool:
        """Whether the next broadcast must wait until an earlier one has ended; override where starting one may block
        otherwise."""
        return False

    def _send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion:
        tensors = self._sources(transfer, regions)
        self._announce(transfer)
        used = [regions[span.region] for span in transfer.spans]
        turn = _Turn(transfer.sender, tensors, lambda: True)
        return PolledOperation(self, transfer, [self._in_turn(turn)], used, fence=lambda: turn.end)

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        if region is None:
            raise RegistrationError("a collective receives into memory; give it a region")
        views = [region.slice(span.local, span.nbytes) for span in transfer.spans]
        turn = _Turn(transfer.sender, views, self._agreed(transfer))
        return PolledOperation(self, transfer, [self._in_turn(turn)], [region], lambda: views, fence=lambda: turn.end)

    def _in_turn(self, turn: _Turn) -> Poll:
        self._turns.append(turn)
        if len(self._turns) == 1:
            self._start_turns()

        def ended() -> bool:
            self._start_turns()
            return turn.ended()

        return ended

    def _start_turns(self) -> None:
        while self._turns:
            turn = self._turns[0]
            if not turn.may_start():
                return
            while turn.waiting:
                if self._full():
                    return
                self._say_ready()  # a library may keep the sender until receivers have joined
                turn.polls.append(self._broadcast(turn.waiting.popleft(), turn.root))
            turn.end, turn.started = self._enqueued(), True
            self._turns.popleft()
