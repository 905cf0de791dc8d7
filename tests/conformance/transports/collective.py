"""A collective transport that can only have a few broadcasts under way."""

from __future__ import annotations

from collections import deque

import torch

from ckpt_transport.transports import Poll
from ckpt_transport.transports.interface import Control, Endpoint, Group
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_gloo.plugin import GlooEndpoint

AT_ONCE = 3


class NarrowEndpoint(GlooEndpoint):
    """Looks which broadcasts have ended, and starts no more than it has room for."""

    def __init__(self, group: Group, control: Control, timeout: float) -> None:
        self._under_way: deque[Poll] = deque()
        super().__init__(group, control, timeout)

    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        assert len(self._under_way) < AT_ONCE
        once = cache_true(super()._broadcast(tensor, root))
        self._under_way.append(once)
        return once

    def _full(self) -> bool:
        while self._under_way and self._under_way[0]():
            self._under_way.popleft()
        return len(self._under_way) == AT_ONCE


def cache_true(poll: Poll) -> Poll:
    """Make a poll that may be called again after True."""
    ended = False

    def polled() -> bool:
        nonlocal ended
        ended = ended or poll()
        return ended

    return polled


class NarrowTransport(GlooTransport):
    """Is gloo with at most three broadcasts under way."""

    name = "narrow"

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return NarrowEndpoint(group, control, timeout)
