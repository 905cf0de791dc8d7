"""A topology says who takes part in an update, on which hosts, and with how much memory to spare."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from functools import cached_property

import msgspec

from ckpt_transport.errors import PlanError
from ckpt_transport.planning.values.block_order import BlockOrder
from ckpt_transport.planning.values.share import Share

NO_LIMIT = 1 << 62
"""The shared budget of a rank where ``/dev/shm`` has room for all that its budget allows."""
EVERYTHING = -1
"""The share of a sink that needs all of a version."""


class Role(enum.StrEnum):
    """What a participant is in an update."""

    SOURCE = "source"
    SINK = "sink"


class RankInfo(msgspec.Struct, frozen=True):
    """What the planner knows of one rank of an update.

    Attributes:
        rank: 0, 1, 2, ...; sources first.
        role: source or sink.
        host: the machine it runs on; equal strings mean that shared memory can be mapped.
        budget: bytes of extra memory an update may take here.
        transports: names of those that can run here.
        whole_tensors: its loader cannot take a tensor in pieces.
        label: what people call it.
        devices: UUIDs of the GPUs it can use: of a sink the one its engine is on, of a source its current one first.
        link: bytes per second of its link to other hosts; 0 when nobody said.
        keeps_tensors: its loader keeps tensors until it has all of a layer
            (:mod:`ckpt_transport.planning.loader_memory`).
        share: what a sink needs of the version, an index into the topology's shares, or EVERYTHING.
        reads: UUIDs of the other GPUs whose memory a sink's GPU can read.
        shared_budget: how many of the bytes of ``budget`` may be shared memory.
        processes: equal in ranks that may read each other's private memory; see
            :func:`~ckpt_transport.memory.processes_in_reach`. Empty where nobody said.
        unread: why a sink does not read tensors in private memory of a source into place; empty where it does.
        files: equal in ranks that can hand each other open files; see
            :func:`~ckpt_transport.memory.files_in_reach`. Empty where nobody said.
        unmapped: why a sink does not map memory of a GPU that it is handed as open files; empty where it does.
    """

    rank: int
    role: Role
    host: str
    budget: int
    transports: tuple[str, ...]
    whole_tensors: bool = False
    label: str = ""
    keeps_tensors: bool = False
    devices: tuple[str, ...] = ()
    link: int = 0
    share: int = EVERYTHING
    reads: tuple[str, ...] = ()
    shared_budget: int = NO_LIMIT
    processes: str = ""
    unread: str = ""
    files: str = ""
    unmapped: str = ""

    def why_not_handed(self, owner: RankInfo) -> str:
        """Why this sink does not map memory of a GPU that ``owner`` hands over, in words; empty if it does."""
        if self.host != owner.host:
            return f"sink {self.rank} is on another host"
        if self.unmapped:
            return f"sink {self.rank} does not map what it is handed: {self.unmapped}"
        if not self.files or self.files != owner.files:
            return f"sink {self.rank} is of another user or network namespace, and cannot be handed their memory"
        return ""

    def why_not_read(self, owner: RankInfo) -> str:
        """Why this sink does not read tensors in private memory of ``owner`` into place, in words; empty if it does."""
        if self.host != owner.host:
            return f"sink {self.rank} is on another host"
        if self.unread:
            return f"sink {self.rank} does not read them into place: {self.unread}"
        if not self.processes or self.processes != owner.processes:
            return f"sink {self.rank} is of another user or container, and may not read their process"
        return ""

    def can_read(self, device: str) -> bool:
        """Whether its GPU can read the memory of the GPU with that UUID."""
        return bool(self.device) and device in (self.device, *self.reads)

    @property
    def device(self) -> str:
        """The GPU it uses where it has the choice; empty for none."""
        return self.devices[0] if self.devices else ""


class Topology(msgspec.Struct, frozen=True, dict=True):
    """All participants, in the order of their ranks, and the shares of sinks that do not need everything."""

    participants: tuple[RankInfo, ...]
    shares: tuple[Share, ...] = ()

    def __post_init__(self) -> None:
        if [participant.rank for participant in self.participants] != list(range(len(self.participants))):
            raise PlanError("participants must have ranks 0, 1, 2, ... in order")
        if not all(EVERYTHING <= participant.share < len(self.shares) for participant in self.participants):
            raise PlanError("a participant has a share that is not there")

    @cached_property
    def sources(self) -> tuple[int, ...]:
        return tuple(p.rank for p in self.participants if p.role is Role.SOURCE)

    @cached_property
    def sinks(self) -> tuple[int, ...]:
        return tuple(p.rank for p in self.participants if p.role is Role.SINK)

    def host(self, rank: int) -> str:
        return self.participants[rank].host

    def can_use(self, transport: str) -> frozenset[int]:
        """The ranks that have that transport."""
        return self._users.get(transport, frozenset())

    @cached_property
    def _users(self) -> dict[str, frozenset[int]]:
        names = {name for participant in self.participants for name in participant.transports}
        return {name: frozenset(p.rank for p in self.participants if name in p.transports) for name in names}

    @cached_property
    def with_devices(self) -> frozenset[int]:
        """The ranks that can use a GPU."""
        return frozenset(p.rank for p in self.participants if p.devices)

    def share_of(self, rank: int) -> Share | None:
        """What that sink needs; None for everything."""
        share = self.participants[rank].share
        return None if share == EVERYTHING else self.shares[share]

    def for_specs(self, digest: str) -> Topology:
        """This topology for a version; sinks whose shares are of versions with other tensors need everything.

        Args:
            digest: :func:`~ckpt_transport.planning.digest_of` the version's tensors.
        """
        if all(share.specs == digest for share in self.shares):
            return self
        kept = {number for number, share in enumerate(self.shares) if share.specs == digest}
        participants = tuple(
            participant if participant.share in kept else msgspec.structs.replace(participant, share=EVERYTHING)
            for participant in self.participants
        )
        return Topology(participants, self.shares)

    def in_order(self, orders: Sequence[BlockOrder]) -> Topology:
        """This topology for a version of which the bytes of some tensors are numbered block by block."""
        if not orders or not self.shares:
            return self
        return Topology(self.participants, tuple(share.in_order(orders) for share in self.shares))

    @cached_property
    def whole_tensors(self) -> bool:
        """Whether a sink's loader cannot take a tensor in pieces."""
        return any(self.participants[rank].whole_tensors for rank in self.sinks)
