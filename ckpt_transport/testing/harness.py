"""A rank of a check opens routes through the transport under test, and talks to the other ranks.

Whether a transport maps memory is asked in one place, :meth:`Rank.open`: a route has an inbox where receivers need
memory of their own, and none where they do not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import torch

from ckpt_transport.errors import TransportError
from ckpt_transport.memory import copy_bytes, visible_devices
from ckpt_transport.memory.devices import HOST
from ckpt_transport.reasons import named_reason
from ckpt_transport.testing.context import RankContext
from ckpt_transport.testing.route_fixture import POLLS, UNTOUCHED, RouteFixture, refuses
from ckpt_transport.testing.side_channel import FAILED, Abandoned, Broken, SideChannel
from ckpt_transport.transports.interface import Transport

__all__ = ["POLLS", "Abandoned", "Broken", "Rank", "RouteFixture", "refuses"]

PIECE = 8 * 1024**2
"""Bytes of an inbox that are written at once."""
PATIENCE = 0.7
"""Which part of a check's deadline a rank waits before it says what it was waiting for."""


class Rank:
    """Runs one rank of a check; enter it, and it meets the others and closes its routes at the end.

    Attributes:
        number: which one.
        ranks: all of them.
        side_channel: for talking to the others.
        transport: the one under test.
    """

    def __init__(
        self, context: RankContext, factory: Callable[[], Transport], deadline: float, *, keeps_peers: bool = True
    ) -> None:
        self.number = context.rank
        self.ranks = tuple(range(context.world_size))
        self.patience = deadline * PATIENCE
        self.side_channel = SideChannel(context, self.patience)
        self.transport = _made(factory)
        self._context = context
        self._keeps_peers = keeps_peers
        self._routes: list[RouteFixture] = []
        self._opened = 0

    def open(
        self,
        *,
        regions: Sequence[int] = (),
        inbox: int = 0,
        senders: Sequence[int] = (0,),
        seed: int | None = None,
    ) -> RouteFixture:
        """Open a route of all ranks, and connect it.

        Args:
            regions: sizes of the memory that each sender registers, allocated by the transport.
            inbox: bytes of memory that each rank registers to receive into, where the transport needs any.
            senders: the ranks that send.
            seed: of the pattern that they fill their regions with; they leave them as they are without one.
        """
        self._opened += 1
        device = visible_devices()[0] if self.transport.traits.on_device else HOST
        group = self._context.group(f"route {self._opened}", device=device)
        endpoint = self.transport.open(group, self._context.control(group), self.patience)
        route = RouteFixture(self.side_channel, self.number, endpoint, regions, senders)
        self._routes.append(route)
        if self.number in senders:
            route.offer(*(endpoint.allocate(nbytes) for nbytes in regions))
            if seed is not None:
                route.fill(seed)
        if not self.transport.traits.maps_memory:
            route.inbox = endpoint.allocate(inbox)
            for piece in torch.split(route.inbox.tensor, PIECE):
                copy_bytes(piece, torch.full((piece.numel(),), UNTOUCHED, dtype=torch.uint8))
            route.inbox_region = endpoint.register(route.inbox)
        route.connect()
        return route

    def close(self, route: RouteFixture) -> None:
        """Close a route before the end of the check, together with the other ranks."""
        self.side_channel.meet()
        route.endpoint.close()
        self._routes.remove(route)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._keeps_peers:
            self.side_channel.meet()
        if error is not None:
            with contextlib.suppress(TransportError):
                self.side_channel.tell(FAILED)
        for route in self._routes:
            if error is None:
                route.endpoint.close()
            else:
                with contextlib.suppress(Exception):
                    route.endpoint.abort(error)
                with contextlib.suppress(Exception):
                    route.endpoint.close()


def _made(factory: Callable[[], Transport]) -> Transport:
    try:
        return factory()
    except Exception as error:
        raise Broken(f"the transport cannot be made: {named_reason(error)}") from error
