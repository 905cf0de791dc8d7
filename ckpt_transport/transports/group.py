"""The ranks of one route, and how they talk to each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks of one route, and which of them this is.

    Attributes:
        route: a name all members agree on, unique among the routes that are open.
        ranks: the members, in the order all of them use.
        rank: this member.
        hosts: the host each member runs on, in the order of ``ranks``.
        devices: the UUID of the GPU that each member uses on this route; empty for none.
    """

    route: str
    ranks: tuple[int, ...]
    rank: int
    hosts: tuple[str, ...]
    devices: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """The UUID of the GPU that this member uses; empty for none."""
        return self.devices[self.index] if self.devices else ""

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def index(self) -> int:
        """This member's position in ``ranks``."""
        return self.ranks.index(self.rank)

    @property
    def on_one_host(self) -> bool:
        return len(set(self.hosts)) == 1

    @property
    def peers(self) -> tuple[int, ...]:
        """Everybody else."""
        return tuple(rank for rank in self.ranks if rank != self.rank)


class Control(Protocol):
    """Small reliable messages between the members of one route, ordered per sender.

    It carries rendezvous data and one-line signals, never weights. Every method may raise
    :class:`~ckpt_transport.errors.PeerLostError` when a member's heartbeat has stopped.
    """

    def send(self, rank: int, payload: bytes) -> None:
        """Send to one member; returns at once."""

    def send_each(self, ranks: Iterable[int], payload: bytes) -> None:
        """Send the same to several members; returns at once. Another member of their host may hand it on to them.

        To one member, what is sent so is ordered; it is not among what :meth:`send` sends.
        """
        for rank in ranks:
            self.send(rank, payload)

    def mention(self, rank: int, payload: bytes) -> None:
        """Send to one member what can wait for a moment, so that it travels with what others say to that one.

        It may come after what :meth:`send` sends later.
        """
        self.send(rank, payload)

    def receive(self) -> tuple[int, bytes] | None:
        """The next message and its sender, or None when there is none now."""

    def wake(self) -> None:
        """Have the endpoint's completions polled soon. The one method that any thread may call."""

    def exchange(self, payload: bytes, timeout: float) -> dict[int, bytes]:
        """Give ``payload`` to every member and return everybody's, own included. All members must call it.

        Raises:
            TransferTimeout: somebody's did not arrive within ``timeout`` seconds.
        """
